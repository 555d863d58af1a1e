"""Answers other than success, as problem+json (RFC 9457), and what the database's refusals are called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import asyncpg
from aiohttp import web

from ingest.api.fields import FieldError
from ingest.http.answers import OVERLOADED_RETRY_SECONDS, problem

_HOUR: Final = 3600
_SECONDS: Final = re.compile(r"(\d+) seconds")
CONTENTION: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError)
"""Others work on the same rows: the same again may well succeed."""
_REFUSALS: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.RaiseError,  # A trigger of the user's own.
)


class Problem(Exception):
    """An answer other than success, from anywhere in a handler."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = headers

    def response(self) -> web.Response:
        more = {"errors": [error._asdict() for error in self.errors]} if self.errors else {}
        return problem(self.status, self.code, self.detail, self.headers, more)


def retry_after(seconds: int = OVERLOADED_RETRY_SECONDS) -> dict[str, str]:
    """The header that says when the same request may succeed."""
    return {"Retry-After": str(seconds)}


def of_database(error: asyncpg.PostgresError) -> Problem:
    """The answer to a refusal by the database's rules. Any other error is a bug of ours, and is raised again.

    No text of the database becomes part of an answer, except our own limits' messages and the names of constraints:
    details and hints name columns, and quote other rows.
    """
    if error.sqlstate == "PT429":
        wait = _SECONDS.fullmatch(error.detail or "")
        return Problem(429, "rate_limited", error.message, headers=retry_after(int(wait[1]) if wait else _HOUR))
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return Problem(403, "forbidden", "row security does not allow this")
    if isinstance(error, asyncpg.CheckViolationError):
        constraint = error.constraint_name or ""
        table = (error.table_name or "") + "_"
        return Problem(422, "refused_by_database", f"refused by the database: {constraint.removeprefix(table)}")
    if isinstance(error, asyncpg.UniqueViolationError | asyncpg.ExclusionViolationError):
        return Problem(409, "conflict", "the database has another row that this would contradict")
    if isinstance(error, _REFUSALS):
        return Problem(422, "refused_by_database", "refused by the database")
    if isinstance(error, CONTENTION):
        return Problem(503, "busy", "somebody else is changing the same; try again", headers=retry_after(1))
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        # A migration changed a table since the statement was prepared. It is prepared again.
        return Problem(503, "busy", "the database has just changed; try again", headers=retry_after(1))
    raise error
