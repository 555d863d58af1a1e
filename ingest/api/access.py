"""Who is calling: an API key, a JWT or nothing becomes a database role, its claims, and scopes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson

from ingest.api.api_keys import PREFIX, ApiKey, KeyRing
from ingest.http.clients import authorization_key, one_of


class InvalidToken(Exception):
    """The token is not accepted; the text says why."""


Verify = Callable[[str], Mapping[str, Any]]
"""The claims of a valid JWT; raises InvalidToken."""


class Scope(StrEnum):
    """What a caller may do over HTTP. Which rows they see and change is up to the database's policies."""

    WRITE = "write"
    READ = "read"
    ADMIN = "admin"


class Caller(NamedTuple):
    """On whose behalf a request runs.

    role: a database role.  claims: JSON for request.jwt.claims, "" for none.  key: the id of their API key, or
    CONFIGURED; requests with the same one share a rate limit.
    """

    role: str
    scopes: frozenset[Scope]
    claims: str = ""
    key: str | None = None

    @property
    def person_id(self) -> UUID | None:
        """The subject of a person's token, if it is a UUID; a key is no person."""
        subject: object = orjson.loads(self.claims).get("sub") if self.claims else None
        try:
            return UUID(subject) if isinstance(subject, str) else None
        except ValueError:
            return None

    @property
    def for_visitors(self) -> Caller:
        """The caller to use for what every visitor may do: a server, which has no limits by address, if they may
        write; otherwise anybody."""
        if Scope.WRITE not in self.scopes:
            return ANYBODY
        return self if self.role == "service_role" else self._replace(role="service_role", claims=_SERVICE_CLAIMS)


class Unauthorized(Exception):
    """The credentials are not accepted; the text says why, and nothing about any other key."""


ANYBODY: Final = Caller("anon", frozenset())
CONFIGURED: Final = "admin_keys"
"""The id of the admin keys in the configuration."""
_SERVICE_CLAIMS: Final = '{"role":"service_role"}'
_OF_SCOPE: Final = {
    # A server that writes for its visitors is not anon, so that limits by address do not apply to it.
    Scope.WRITE: ("service_role", {"role": "service_role"}, frozenset({Scope.WRITE})),
    Scope.READ: (
        "authenticated",
        {"role": "authenticated", "app_metadata": {"role": "analyst"}},
        frozenset({Scope.READ}),
    ),
    Scope.ADMIN: (
        "authenticated",
        {"role": "authenticated", "app_metadata": {"role": "admin"}},
        frozenset(Scope),
    ),
}
_OF_PERSON: Final = {"admin": frozenset(Scope), "analyst": frozenset({Scope.READ})}


class Authenticator:
    """Finds callers by their credentials. `verify` is None where JWTs are not accepted."""

    def __init__(self, keys: KeyRing, admin_keys: Sequence[str], verify: Verify | None) -> None:
        self._keys = keys
        self._is_admin_key = one_of(admin_keys)
        self._verify = verify

    async def identify(self, authorization: str | None, api_key: str | None = None) -> Caller:
        """The caller, from the headers Authorization and X-API-Key. Raises Unauthorized."""
        if authorization is None and api_key is None:
            return ANYBODY
        given = authorization_key(authorization) if authorization is not None else api_key
        if not given:
            raise Unauthorized("Authorization must be `Bearer KEY`, or Basic with the key as user name")
        if given.startswith(PREFIX):
            return await self._by_key(given)
        # A configured admin key may contain dots, too.
        if self._is_admin_key(given):
            return configured_admin()
        if given.count(".") == 2:
            return self._by_token(given)
        raise Unauthorized("the key is unknown")

    async def _by_key(self, given: str) -> Caller:
        key = await self._keys.find(given)
        if key is None:
            raise Unauthorized("the key is unknown, revoked or expired")
        return caller_of_key(key)

    def _by_token(self, given: str) -> Caller:
        if self._verify is None:
            raise Unauthorized("JWTs are not accepted here: neither jwt_secret nor jwks_file is set")
        try:
            claims = self._verify(given)
        except InvalidToken as error:
            raise Unauthorized(str(error)) from None
        return caller_of_claims(claims)


def caller_of_key(key: ApiKey) -> Caller:
    """Whoever has this API key."""
    return _caller_of(key.scopes, str(key.id))


def configured_admin() -> Caller:
    """Whoever has one of the admin keys in the configuration."""
    return _caller_of([Scope.ADMIN.value], CONFIGURED)


def analyst() -> Caller:
    """Somebody who may read statistics, and has no key of their own."""
    role, claims, scopes = _OF_SCOPE[Scope.READ]
    return Caller(role, scopes, orjson.dumps(claims).decode())


def caller_of_claims(claims: Mapping[str, Any]) -> Caller:
    """Whoever has a valid JWT with these claims. Raises Unauthorized."""
    role = str(claims["role"])
    metadata = claims.get("app_metadata")
    person = metadata.get("role") if isinstance(metadata, dict) else None
    if role == "service_role":
        scopes = frozenset(Scope)
    elif role == "authenticated" and isinstance(person, str):
        scopes = _OF_PERSON.get(person, frozenset())
    else:
        scopes = frozenset()
    return Caller(role, scopes, _as_text(claims))


def secret_key_checker(keys: KeyRing, admin_keys: Sequence[str]) -> Callable[[str], bool]:
    """Returns a check whether a key is secret: an API key that may write, or an admin key. The check does not ask
    the database, so it may not know a key created in the last few seconds."""
    is_admin_key = one_of(admin_keys)

    def check(key: str) -> bool:
        if not key.startswith(PREFIX):
            return is_admin_key(key)
        found = keys.known(key)
        return found is not None and not {Scope.WRITE, Scope.ADMIN}.isdisjoint(found.scopes)

    return check


def _as_text(claims: Mapping[str, Any]) -> str:
    """The claims as JSON that the database can read. Raises Unauthorized if it could not."""
    try:
        text = orjson.dumps(claims).decode()
    except TypeError:
        # Half a character, or a number beyond 64 bits.
        text = "\\u0000"
    if "\\u0000" in text:
        raise Unauthorized("the token has claims that cannot be read")
    return text


def _caller_of(scopes: Sequence[str], key: str) -> Caller:
    """With the role of the highest scope, and what the others allow in addition."""
    highest = next(scope for scope in reversed(Scope) if scope.value in scopes)
    role, claims, allowed = _OF_SCOPE[highest]
    return Caller(role, allowed | {Scope(scope) for scope in scopes}, orjson.dumps(claims).decode(), key)
