"""The operations on experiments: for units, which anybody may call, and for admins."""

from __future__ import annotations

from ingest.api.access import Scope
from ingest.api.operations import Documented, Operation
from ingest.events.placeholders import Placeholders
from ingest.features.experiments.administration import (
    Administration,
    Asked,
    Completion,
    Experiment,
    ExperimentResults,
    Listed,
    Listing,
    Which,
)
from ingest.features.experiments.declaration import Changes, NewExperiment
from ingest.features.experiments.definitions import Definitions
from ingest.features.experiments.lifecycle import STEPS
from ingest.features.experiments.units import Assignments, Exposed, Exposure, Unit, Units

_PATH = "/v1/experiments"
_ONE = _PATH + "/{id}"
_ADMIN_TAG = "experiments (admin)"
_MISSING = {404: Documented("No such experiment")}
_CONFLICT = {409: Documented("Not possible in its current state; `detail` says why")}


def operations(definitions: Definitions, placeholders: Placeholders) -> list[Operation]:
    administration = Administration(definitions)
    steps = [_step(administration, name) for name in STEPS]
    return [*_of_units(Units(definitions, placeholders)), *_of_admins(administration), *steps]


def _of_units(units: Units) -> list[Operation]:
    return [
        Operation(
            "POST",
            f"{_PATH}/assignments",
            units.assign,
            "Assign variants to a unit",
            "experiments",
            body=Unit,
            description="The unit is the user_id or, without one, the session_id. Its variant depends only on the"
            " experiment and the unit, and never changes; whether it takes part depends on the traffic and targeting"
            " rules at the time of the request. Assignments are stored.",
            answers={200: Documented("The assigned variants", Assignments)},
        ),
        Operation(
            "POST",
            f"{_PATH}/exposures",
            units.expose,
            "Record that a unit was shown its variant",
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


def _of_admins(administration: Administration) -> list[Operation]:
    return [
        Operation(
            "POST",
            _PATH,
            administration.create,
            "Draft an experiment",
            _ADMIN_TAG,
            scope=Scope.ADMIN,
            body=NewExperiment,
            answers={201: Documented("Created as a draft", Experiment), 409: Documented("The name is taken")},
        ),
        Operation(
            "GET",
            _PATH,
            administration.list,
            "List experiments",
            _ADMIN_TAG,
            scope=Scope.ADMIN,
            query=Listing,
            answers={200: Documented("A page of experiments", Listed)},
        ),
        Operation(
            "GET",
            _ONE,
            administration.show,
            "Read an experiment",
            _ADMIN_TAG,
            scope=Scope.ADMIN,
            parameters=Which,
            answers={200: Documented("The experiment", Experiment), **_MISSING},
        ),
        Operation(
            "PATCH",
            _ONE,
            administration.change,
            "Change an experiment",
            _ADMIN_TAG,
            scope=Scope.ADMIN,
            parameters=Which,
            body=Changes,
            description="Once it has been started, name, variants, weights and rules are fixed, and traffic can only"
            " grow.",
            answers={200: Documented("The changed experiment", Experiment), **_MISSING, **_CONFLICT},
        ),
        Operation(
            "GET",
            f"{_ONE}/results",
            administration.results,
            "Read an experiment's results",
            _ADMIN_TAG,
            scope=Scope.ADMIN,
            parameters=Which,
            query=Asked,
            answers={200: Documented("The results by variant", ExperimentResults), **_MISSING},
        ),
    ]


def _step(administration: Administration, name: str) -> Operation:
    return Operation(
        "POST",
        f"{_ONE}/{name}",
        administration.step(name),
        f"{name.capitalize()} an experiment",
        _ADMIN_TAG,
        description=f"Possible in {', '.join(STEPS[name].possible_in)}.",
        scope=Scope.ADMIN,
        parameters=Which,
        body=Completion if name == "complete" else None,
        answers={200: Documented("The changed experiment", Experiment), **_MISSING, **_CONFLICT},
    )
