"""What a load's clients were told is done, and whether the database has all of it, once, and nothing else.

The clients append lines to one file a table; afterwards the files are loaded next to the service's tables, so that
each claim is one query, and is about the very rows that were acknowledged, not about their number alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, TextIO

from bench.database import Database

TABLES: Final[Mapping[str, str]] = {
    "events": "id uuid NOT NULL",
    "leads": "id uuid NOT NULL, email text NOT NULL",
    "submissions": "lead_id uuid NOT NULL",
    "statuses": "lead_id uuid NOT NULL, status text NOT NULL",
    "interactions": "id uuid NOT NULL, lead_id uuid NOT NULL",
    "sessions": "id uuid NOT NULL",
    "steps": "session_id uuid NOT NULL, step text NOT NULL",
    "activities": "id uuid NOT NULL, session_id uuid NOT NULL, activity_type text NOT NULL",
    "mistakes": "session_id uuid NOT NULL, step text NOT NULL, field_name text NOT NULL",
    "exposures": "experiment text NOT NULL, session_id text NOT NULL, variant_id text NOT NULL",
}
"""What is acknowledged -> the columns of its lines. One line each, in the order in which it came: a lead is in
`leads` when it is new, in `submissions` each time its address is left again; `statuses` are changes; `mistakes` are
refused fields of a step, which are recorded."""

_EMITTED: Final[Mapping[str, str]] = {
    "lead_created": "SELECT count(*) FROM acknowledged.leads",
    "lead_updated": "SELECT count(*) FROM acknowledged.submissions",
    "lead_status_changed": "SELECT count(*) FROM acknowledged.statuses",
    "lead_interaction_added": "SELECT count(*) FROM acknowledged.interactions",
    "onboarding_started": "SELECT count(*) FROM acknowledged.sessions",
    "onboarding_step_completed": "SELECT count(*) FROM acknowledged.steps",
    "onboarding_completed": "SELECT count(*) FROM acknowledged.steps WHERE step = 'testing'",
    "experiment_exposure": "SELECT count(*) FROM acknowledged.exposures",
}
"""Events that the service makes itself -> how many there must be. No client of the load sends any of these names."""
_NAMES: Final = ", ".join(f"'{name}'" for name in _EMITTED)
_RECORDED: Final[Mapping[str, str]] = {
    "form_started": "SELECT count(*) FROM acknowledged.activities WHERE activity_type = 'form_started'",
    "field_filled": "SELECT count(*) FROM acknowledged.activities WHERE activity_type = 'field_filled'",
    "validation_error": "SELECT count(*) FROM acknowledged.mistakes",
    "step_completed": "SELECT count(*) FROM acknowledged.steps",
}
"""Activities of onboarding, by type -> how many there must be."""
_STEPS: Final = ("business_info", "whatsapp_integration", "bot_setup", "testing")
_STEPS_OF: Final = " UNION ALL ".join(
    f"SELECT id AS session_id, '{step}' AS step FROM onboarding.sessions WHERE {step}_completed_at IS NOT NULL"
    for step in _STEPS
)
_ADDED_UP: Final = """
    (SELECT event_type, event_name, sum(event_count) AS events FROM analytics.event_aggregations
     WHERE granularity = '{granularity}' AND dimensions = '{{}}' GROUP BY 1, 2) AS added
    FULL JOIN (SELECT type AS event_type, name AS event_name, count(*) AS events FROM analytics.events GROUP BY 1, 2)
        AS stored USING (event_type, event_name)
"""

_WRONG: Final[Mapping[str, str]] = {
    "acknowledged events are not in analytics.events": (
        "SELECT count(*) FROM (SELECT id FROM acknowledged.events EXCEPT SELECT id FROM analytics.events) AS missing"
    ),
    "ids are in analytics.events more than once": (
        "SELECT count(*) FROM (SELECT FROM analytics.events GROUP BY id HAVING count(*) > 1) AS twice"
    ),
    "events are stored that nobody was told of": (
        f"SELECT count(*) FROM (SELECT id FROM analytics.events WHERE name NOT IN ({_NAMES})"
        " EXCEPT SELECT id FROM acknowledged.events) AS surplus"
    ),
    "acknowledged leads are not stored as they were sent": (
        "SELECT count(*) FROM acknowledged.leads AS told WHERE NOT EXISTS (SELECT FROM marketing.leads AS lead"
        " WHERE (lead.id, lead.email) = (told.id, told.email) AND lead.duplicate_of IS NULL)"
    ),
    "leads are in use twice": (
        "SELECT count(*) FROM (SELECT FROM marketing.leads WHERE deleted_at IS NULL"
        " GROUP BY email HAVING count(*) > 1) AS twice"
    ),
    "leads have another number of submissions than was acknowledged": (
        "SELECT count(*) FROM (SELECT lead_id, count(*) AS times FROM acknowledged.submissions GROUP BY 1) AS told"
        " FULL JOIN (SELECT duplicate_of AS lead_id, count(*) AS times FROM marketing.leads"
        " WHERE duplicate_of IS NOT NULL GROUP BY 1) AS stored USING (lead_id)"
        " WHERE told.times IS DISTINCT FROM stored.times"
    ),
    "leads have another status than the last that was acknowledged": (
        "SELECT count(*) FROM (SELECT DISTINCT ON (lead_id) lead_id, status FROM acknowledged.statuses"
        " ORDER BY lead_id, line DESC) AS told LEFT JOIN marketing.leads AS lead ON lead.id = lead_id"
        " WHERE lead.status::text IS DISTINCT FROM told.status"
    ),
    "interactions are missing, or of another lead": (
        "SELECT count(*) FROM (SELECT id, lead_id FROM acknowledged.interactions"
        " EXCEPT SELECT id, lead_id FROM marketing.lead_interactions) AS missing"
    ),
    "interactions are stored that nobody was told of": (
        "SELECT count(*) FROM (SELECT id FROM marketing.lead_interactions"
        " EXCEPT SELECT id FROM acknowledged.interactions) AS surplus"
    ),
    "onboarding sessions are missing": (
        "SELECT count(*) FROM (SELECT id FROM acknowledged.sessions EXCEPT SELECT id FROM onboarding.sessions)"
        " AS missing"
    ),
    "steps of onboarding are acknowledged and not done": (
        "SELECT count(*) FROM (SELECT session_id, step FROM acknowledged.steps EXCEPT ALL"
        f" SELECT session_id, step FROM ({_STEPS_OF}) AS done) AS missing"
    ),
    "steps of onboarding are done and not acknowledged": (
        f"SELECT count(*) FROM (SELECT session_id, step FROM ({_STEPS_OF}) AS done"
        " EXCEPT ALL SELECT session_id, step FROM acknowledged.steps) AS surplus"
    ),
    "onboarding sessions are completed without their last step, or not with it": (
        "SELECT count(*) FROM onboarding.sessions AS session WHERE (status = 'completed') IS DISTINCT FROM"
        " EXISTS (SELECT FROM acknowledged.steps AS told WHERE told.session_id = session.id AND step = 'testing')"
    ),
    "activities are missing, or of another session": (
        "SELECT count(*) FROM (SELECT id, session_id, activity_type FROM acknowledged.activities"
        " EXCEPT SELECT id, session_id, activity_type FROM onboarding.step_activities) AS missing"
    ),
    "mistakes in a step are not recorded": (
        "SELECT count(*) FROM (SELECT session_id, step, field_name FROM acknowledged.mistakes EXCEPT ALL"
        " SELECT session_id, step::text, field_name FROM onboarding.step_activities"
        " WHERE activity_type = 'validation_error') AS missing"
    ),
    "units have other exposures than were acknowledged, or another variant": (
        "SELECT count(*) FROM (SELECT experiment, session_id, variant_id, count(*) AS times"
        " FROM acknowledged.exposures GROUP BY 1, 2, 3) AS told"
        " FULL JOIN (SELECT name AS experiment, session_id, variant_id, exposure_count AS times"
        " FROM experiments.assignments JOIN experiments.experiments AS one ON one.id = experiment_id) AS stored"
        " USING (experiment, session_id, variant_id) WHERE told.times IS DISTINCT FROM stored.times"
    ),
    **{
        f"too many or too few events {name} were made by the service": (
            f"SELECT abs((SELECT count(*) FROM analytics.events WHERE name = '{name}') - ({expected}))"
        )
        for name, expected in _EMITTED.items()
    },
    **{
        f"too many or too few activities {kind}": (
            f"SELECT abs((SELECT count(*) FROM onboarding.step_activities WHERE activity_type = '{kind}')"
            f" - ({expected}))"
        )
        for kind, expected in _RECORDED.items()
    },
    **{
        f"totals of {granularity}s differ from the events": (
            f"SELECT count(*) FROM {_ADDED_UP.format(granularity=granularity)}"
            " WHERE added.events IS DISTINCT FROM stored.events"
        )
        for granularity in ("hour", "day")
    },
}
"""What would be wrong -> how often it is. Each counts 0 where all is well."""


class Book:
    """Writes down what is acknowledged, in one file a table, in the order in which it comes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, TextIO] = {name: _file(folder, name).open("w") for name in TABLES}
        # Lines by table. Changed by `add`.
        self.lines = dict.fromkeys(TABLES, 0)

    def add(self, table: str, *values: str) -> None:
        """A line. Values have neither tabs nor line ends nor backslashes, as those of a load have none."""
        self._files[table].write("\t".join(values) + "\n")
        self.lines[table] += 1

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def load(database: Database, folder: Path) -> dict[str, int]:
    """Load what a Book wrote into the schema `acknowledged`. Returns the number of lines of each table."""
    statements = ["DROP SCHEMA IF EXISTS acknowledged CASCADE", "CREATE SCHEMA acknowledged"]
    for name, columns in TABLES.items():
        named = ", ".join(column.split()[0] for column in columns.split(", "))
        statements += [
            f"CREATE TABLE acknowledged.{name} (line bigint GENERATED ALWAYS AS IDENTITY, {columns})",
            f"\\copy acknowledged.{name} ({named}) FROM '{_file(folder, name)}'",
        ]
    database.sql(*statements, "ANALYZE")
    counted = database.sql(_one_by_one({name: f"SELECT count(*) FROM acknowledged.{name}" for name in TABLES}))
    return {name: int(count) for name, _, count in (line.rpartition("|") for line in counted.splitlines())}


def wrong(database: Database, tamper: str = "") -> list[str]:
    """Where the database differs from what was loaded with `load`; empty if nowhere. Everything must be stored and
    rolled up. `tamper`: statements that are undone afterwards, for tests of what is found."""
    found = database.sql("BEGIN", *([tamper] if tamper else []), _one_by_one(_WRONG), "ROLLBACK")
    counted = (line.rpartition("|") for line in found.splitlines())
    return [f"{int(times):,} {words}" for words, _, times in counted if int(times)]


def _one_by_one(queries: Mapping[str, str]) -> str:
    return " UNION ALL ".join(f"SELECT '{words}', ({query})" for words, query in queries.items())


def _file(folder: Path, table: str) -> Path:
    return folder / f"{table}.tsv"
