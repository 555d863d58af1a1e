"""Experiments: which variants a unit has, that it was shown one, and what the team does with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import asyncpg
import msgspec
import orjson
from aiohttp import web

from ingest.api import fields
from ingest.api.access import Caller, Scope
from ingest.api.calls import Call
from ingest.api.fields import FieldError, Invalid
from ingest.api.operations import JSON, Documented, Operation
from ingest.api.problems import Problem
from ingest.events.limits import MAX_ID_CHARACTERS, MAX_URL_CHARACTERS
from ingest.events.placeholders import Placeholders
from ingest.events.values.user_agents import describe_user_agent
from ingest.features.experiments import store
from ingest.features.experiments.assignment import Context, canonical_id, country_code
from ingest.features.experiments.declaration import Changes, NewExperiment, TargetingRules, Variant
from ingest.features.experiments.definitions import Definitions
from ingest.features.experiments.flags import Reason
from ingest.features.experiments.lifecycle import STEPS, WrongState
from ingest.features.experiments.results import Question, Results, analyse
from ingest.http.prefetch import is_made_ahead
from ingest.postgres.queries import load_queries

_QUERIES: Final = load_queries("experiments")
TOO_MANY: Final = "PT429"
"""SQLSTATE of what is over a limit by address."""
Status = Literal["draft", "running", "paused", "completed", "cancelled"]

SessionId = Annotated[str, fields.text("As in events", low=1, high=MAX_ID_CHARACTERS)]
UserId = Annotated[
    UUID, fields.about("Whose it is must be proved: by scope write, or by being their own token's sub")
]
Country = Annotated[
    str, fields.text("ISO 3166-1 alpha-2", low=2, high=2, pattern="^[A-Za-z]{2}$", what="two letters such as DE")
]
Attributes = Annotated[dict[str, Any], fields.about("For targeting rules about attributes")]


class Unit(msgspec.Struct, forbid_unknown_fields=True):
    """Who asks, and what targeting rules may ask about: session_id, user_id or both."""

    session_id: SessionId | None = None
    user_id: UserId | None = None
    country: Country | None = None
    device: Literal["desktop", "mobile", "tablet", "bot", "other"] | None = None
    url: Annotated[str, fields.text("Of the page", high=MAX_URL_CHARACTERS)] | None = None
    attributes: Attributes | None = None


class Exposure(Unit, forbid_unknown_fields=True, kw_only=True):
    """That a unit was shown its variant; with the same context as it was assigned by, if it was by a flag."""

    experiment: Annotated[str, fields.text("Its name", low=1, high=100)]
    variant: Annotated[str, fields.text("What was shown; checked if given", low=1, high=100)] | None = None
    anonymous_id: (
        Annotated[str, fields.text("As in events, for the event of it", low=1, high=MAX_ID_CHARACTERS)] | None
    ) = None


class Given(msgspec.Struct):
    """What a unit was given in one experiment."""

    experiment_id: str
    variant_id: str
    payload: Any


class Assignments(msgspec.Struct):
    """By the experiment's name; those the unit takes no part in are not there."""

    assignments: dict[str, Given]


class Exposed(msgspec.Struct, omit_defaults=True):
    """What was shown."""

    experiment: str
    variant_id: str
    recorded: Annotated[
        bool,
        fields.about(
            "false: the address has brought more new units than assignments_per_hour; the exposure is kept as an"
            " event, and results name it apart"
        ),
    ] = True


class Experiment(msgspec.Struct):
    """An experiment, all of it."""

    id: UUID
    name: str
    description: str | None
    hypothesis: str | None
    is_active: Annotated[bool, fields.about("Whether it is running and not switched off")]
    traffic_percentage: float
    control_variant: Variant
    test_variants: list[Variant]
    targeting_rules: TargetingRules
    start_date: datetime | None
    end_date: datetime | None
    status: Status
    results: dict[str, Any]
    winner_variant_id: str | None
    created_by: UUID | None
    archived_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Listed(msgspec.Struct):
    """A page of experiments, the newest first."""

    experiments: list[Experiment]
    next: Annotated[UUID | None, fields.about("For `after`, to have the next page; null: there is none")]


class Listing(msgspec.Struct, forbid_unknown_fields=True):
    """Which experiments."""

    status: Annotated[Status, fields.about("Only those")] | None = None
    archived: Annotated[bool, fields.about("Archived ones, too")] = False
    after: Annotated[UUID, fields.about("The `next` of the page before")] | None = None
    limit: Annotated[int, fields.number("At most so many", 1, 1000)] = 100


class Which(msgspec.Struct, forbid_unknown_fields=True):
    """Which experiment."""

    id: Annotated[UUID, fields.about("The experiment's id")]


class Completion(msgspec.Struct, forbid_unknown_fields=True):
    """How it ends. Flags give everybody the winner, if there is one, else the control."""

    winner_variant_id: Annotated[str, fields.text("One of its variants", low=1, high=100)] | None = None


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """What the results are about."""

    event: Annotated[str, fields.text("Name of the event that counts as a conversion", low=1, high=100)]
    confidence: Annotated[float, fields.number("Of intervals and verdicts", 0.5, 0.999)] = 0.95
    minimum_effect: Annotated[float, fields.number("The relative lift worth finding: 0.1 is 10 %", 0.001, 10)] = 0.1
    power: Annotated[float, fields.number("How probably it is found if it is there", 0.5, 0.99)] = 0.8


class ExperimentResults(Results, kw_only=True):
    """What came of an experiment."""

    experiment_id: str
    experiment: str
    status: Status
    event: str
    confidence: float
    minimum_effect: float
    power: float


class Experiments:
    """Serves experiments; what it changes, `definitions` reads again."""

    def __init__(self, definitions: Definitions, placeholders: Placeholders) -> None:
        self._definitions = definitions
        self._placeholders = placeholders

    def operations(self) -> list[Operation]:
        return [*self._public(), *self._of_admins(), *[self._step(name) for name in STEPS]]

    def _public(self) -> list[Operation]:
        return [
            Operation(
                "POST",
                "/v1/experiments/assignments",
                self.assign,
                "The variants of a unit",
                "experiments",
                body=Unit,
                description="The unit is the user_id, else the session_id. Its variant depends on the experiment and"
                " the unit alone and never changes; whether it takes part, on traffic and targeting rules as they are"
                " met now. Stored.",
                answers={200: Documented("The assigned variants", Assignments)},
            ),
            Operation(
                "POST",
                "/v1/experiments/exposures",
                self.expose,
                "A unit was shown its variant",
                "experiments",
                body=Exposure,
                description="Record it when the variant is shown, not when it is fetched.",
                answers={
                    200: Documented("Recorded", Exposed),
                    404: Documented("No such experiment is running"),
                    409: Documented("The unit has another variant, or takes no part"),
                },
            ),
        ]

    def _of_admins(self) -> list[Operation]:
        path, tag, admin = "/v1/experiments", "experiments (admin)", Scope.ADMIN
        one = path + "/{id}"
        missing, taken = (
            {404: Documented("No such experiment")},
            {409: Documented("Not possible in its current state; `detail` says why")},
        )
        return [
            Operation(
                "POST",
                path,
                self.create,
                "Draft an experiment",
                tag,
                scope=admin,
                body=NewExperiment,
                answers={201: Documented("Created as a draft", Experiment), 409: Documented("The name is taken")},
            ),
            Operation(
                "GET",
                path,
                self.list,
                "List experiments",
                tag,
                scope=admin,
                query=Listing,
                answers={200: Documented("A page of experiments", Listed)},
            ),
            Operation(
                "GET",
                one,
                self.show,
                "An experiment",
                tag,
                scope=admin,
                parameters=Which,
                answers={200: Documented("The experiment", Experiment), **missing},
            ),
            Operation(
                "PATCH",
                one,
                self.change,
                "Change an experiment",
                tag,
                scope=admin,
                parameters=Which,
                body=Changes,
                description="Once it was started, name, variants, weights and rules stay, and traffic only grows.",
                answers={200: Documented("The changed experiment", Experiment), **missing, **taken},
            ),
            Operation(
                "GET",
                one + "/results",
                self.results,
                "Results",
                tag,
                scope=admin,
                parameters=Which,
                query=Asked,
                answers={200: Documented("By variant", ExperimentResults), **missing},
            ),
        ]

    def _step(self, name: str) -> Operation:
        async def act(call: Call) -> web.StreamResponse:
            winner = call.body.winner_variant_id if call.body is not None else None
            async with _told(), call.transaction() as connection:
                row = await store.step(connection, call.parameters.id, name, winner)
            return await self._changed(row)

        step = STEPS[name]
        return Operation(
            "POST",
            "/v1/experiments/{id}/" + name,
            act,
            f"{name.capitalize()} an experiment",
            "experiments (admin)",
            description=f"Possible in {', '.join(step.possible_in)}.",
            scope=Scope.ADMIN,
            parameters=Which,
            body=Completion if name == "complete" else None,
            answers={
                200: Documented("The changed experiment", Experiment),
                404: Documented("No such experiment"),
                409: Documented("Not possible in its current state; `detail` says what is"),
            },
        )

    # Units.

    async def assign(self, call: Call) -> web.StreamResponse:
        unit: Unit = call.body
        self._leave_out_nobody(unit)
        caller = _proved(call.caller, unit)
        async with call.transaction(caller=caller) as connection:
            told = await connection.fetchval(
                _QUERIES["assign"], unit.user_id, unit.session_id, unit.country, unit.device, unit.url, _json(unit)
            )
        given = orjson.loads(told)
        if not all(self._definitions.knows(each["experiment_id"]) for each in given.values()):
            await self._definitions.refresh()
        for each in given.values():
            payload = self._definitions.payload(each["experiment_id"], each["variant_id"])
            each["payload"] = msgspec.Raw((payload or "null").encode())
        return web.Response(body=msgspec.json.encode({"assignments": given}), content_type=JSON)

    async def expose(self, call: Call) -> web.StreamResponse:
        shown: Exposure = call.body
        self._leave_out_nobody(shown)
        caller = _proved(call.caller, shown)
        call.require_room()
        if _is_unseen(call, shown):
            # Bots count nowhere, and its event is a bot's.
            return await self._leave_unrecorded(call, shown, unseen=True)
        try:
            async with call.transaction(caller=caller) as connection:
                found = await connection.fetchrow(
                    _QUERIES["expose"],
                    shown.experiment,
                    shown.user_id,
                    shown.session_id,
                    shown.variant,
                    shown.country,
                    shown.device,
                    shown.url,
                    _json(shown),
                )
                # Raised within, so that nothing of it stays.
                _check_exposed(found["is_running"], found["variant_id"], shown.variant)
        except asyncpg.PostgresError as error:
            if error.sqlstate != TOO_MANY:
                raise
            # It was shown all the same, and is not lost: the results tell how many there were.
            return await self._leave_unrecorded(call, shown)
        await call.emit(_event(shown, found["variant_id"]), of_client=not _is_server(call))
        return _json_answer(msgspec.json.encode(Exposed(shown.experiment, found["variant_id"])))

    async def _leave_unrecorded(self, call: Call, shown: Exposure, unseen: bool = False) -> web.StreamResponse:
        variant = await self._computed(shown)
        event = _event(shown, variant) | {"properties": _shown(shown, variant) | {"recorded": False}}
        await call.emit(event, of_client=not _is_server(call), unseen=unseen)
        return _json_answer(msgspec.json.encode(Exposed(shown.experiment, variant, False)))

    def _leave_out_nobody(self, unit: Unit) -> None:
        """Without the ids that are nobody's: who has none would all be one unit."""
        unit.session_id = self._placeholders.known(unit.session_id)
        if unit.user_id is not None and self._placeholders.has(str(unit.user_id)):
            unit.user_id = None

    async def _computed(self, shown: Exposure) -> str:
        """The variant of a unit that is not stored. Raises Problem."""
        flag = (await self._definitions.loaded()).get(shown.experiment)
        unit = str(shown.user_id) if shown.user_id is not None else shown.session_id
        assert unit is not None
        context = Context(country_code(shown.country), shown.device, shown.url, shown.attributes)
        evaluation = flag.evaluate(canonical_id(unit).encode(), context, _now) if flag is not None else None
        if evaluation is None or evaluation.reason in (Reason.DISABLED, Reason.STATIC):
            _check_exposed(False, None, shown.variant)
        takes_part = evaluation is not None and evaluation.reason is not Reason.DEFAULT
        variant = evaluation.variant if evaluation is not None and takes_part else None
        _check_exposed(True, variant, shown.variant)
        assert variant is not None
        return variant

    # Admins.

    async def create(self, call: Call) -> web.StreamResponse:
        async with _told(), call.transaction() as connection:
            row = await store.create(connection, call.body, _subject(call.caller))
        return _json_answer(row.encode(), 201)

    async def list(self, call: Call) -> web.StreamResponse:
        asked: Listing = call.query
        async with call.transaction() as connection:
            page = await store.listed(connection, asked.status, asked.archived, asked.after, asked.limit)
        told = ",".join(page.rows)
        return _json_answer(b'{"experiments":[%b],"next":%b}' % (told.encode(), orjson.dumps(page.next)))

    async def show(self, call: Call) -> web.StreamResponse:
        async with _told(), call.transaction() as connection:
            row = await store.read(connection, call.parameters.id)
        return _json_answer(row.encode())

    async def change(self, call: Call) -> web.StreamResponse:
        async with _told(), call.transaction() as connection:
            row = await store.change(connection, call.parameters.id, call.body)
        return await self._changed(row)

    async def results(self, call: Call) -> web.StreamResponse:
        asked: Asked = call.query
        async with _told(), call.transaction() as connection:
            counted = await store.count(connection, call.parameters.id, asked.event)
        question = Question(asked.confidence, asked.minimum_effect, asked.power)
        found = await asyncio.to_thread(analyse, counted.counts, question, counted.unrecorded)
        told = {
            "experiment_id": counted.id,
            "experiment": counted.name,
            "status": counted.status,
            "event": asked.event,
            "confidence": asked.confidence,
            "minimum_effect": asked.minimum_effect,
            "power": asked.power,
            **msgspec.structs.asdict(found),
        }
        return _json_answer(msgspec.json.encode(told))

    async def _changed(self, row: str) -> web.StreamResponse:
        await self._definitions.refresh()
        return _json_answer(row.encode())


def _json_answer(body: bytes, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body, content_type=JSON)


def _is_server(call: Call) -> bool:
    """Whether a server speaks for its visitors: its address and user agent are not theirs."""
    return Scope.WRITE in call.caller.scopes


def _is_unseen(call: Call, shown: Exposure) -> bool:
    """Whether nobody saw it: it was a bot, or a browser ahead of time. No server says that of its own requests: where
    one sends such a header, it passes on its visitor's."""
    if shown.device == "bot" or is_made_ahead(call.request.headers):
        return True
    return not _is_server(call) and describe_user_agent(call.user_agent).device_type == "bot"


def _json(unit: Unit) -> str | None:
    return orjson.dumps(unit.attributes).decode() if unit.attributes is not None else None


@asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """What the store refuses, as a problem."""
    try:
        yield
    except store.NotFound:
        raise Problem(404, "no_such_experiment", "there is no such experiment") from None
    except store.NameTaken as error:
        raise Problem(409, "name_taken", str(error)) from None
    except WrongState as error:
        raise Problem(409, "wrong_state", str(error)) from None


def _subject(caller: Caller) -> UUID | None:
    """The person of a token; None: it is not a person's."""
    if not caller.claims:
        return None
    try:
        return UUID(str(orjson.loads(caller.claims).get("sub")))
    except ValueError:
        return None


def _proved(caller: Caller, unit: Unit) -> Caller:
    """On whose behalf the unit is worked for. A session is known by its id, which nobody else has; a user is not."""
    if unit.session_id is None and unit.user_id is None:
        raise Invalid(
            [FieldError("session_id", "is needed, or user_id: the unit; null, 0 and the like are nobody's")]
        )
    may_write = Scope.WRITE in caller.scopes
    is_own = caller.role == "authenticated" and _subject(caller) == unit.user_id
    if unit.user_id is not None and not may_write and not is_own:
        if caller.role == "anon":
            detail = "for a user_id this needs Authorization: Bearer, with scope write or the user's own token"
            raise Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="ingest"'})
        raise Problem(403, "forbidden", "these credentials are for another user_id, or may not write")
    if may_write and Scope.ADMIN not in caller.scopes:
        # Also where a key may read beside, whose role may not write.
        return caller._replace(role="service_role", claims='{"role":"service_role"}')
    return caller


def _check_exposed(is_running: bool, variant: str | None, shown: str | None) -> None:
    """Raises Problem if that is nothing to record."""
    if not is_running:
        raise Problem(404, "no_such_experiment", "no experiment of that name is running")
    if variant is None:
        raise Problem(
            409, "takes_no_part", "the unit takes no part: it is outside the experiment's traffic or targeting"
        )
    if shown is not None and shown != variant:
        raise Problem(409, "another_variant", f"the unit was given another variant: {variant}")


def _shown(shown: Exposure, variant: str) -> dict[str, Any]:
    return {"experiment": shown.experiment, "variant": variant}


def _event(shown: Exposure, variant: str) -> dict[str, Any]:
    event: dict[str, Any] = {"name": "experiment_exposure", "type": "system", "properties": _shown(shown, variant)}
    if shown.user_id is not None:
        event["user_id"] = str(shown.user_id)
    if shown.session_id is not None:
        event["session_id"] = shown.session_id
    if shown.anonymous_id is not None:
        event["anonymous_id"] = shown.anonymous_id
    return event


def _now() -> datetime:
    return datetime.now(UTC)
