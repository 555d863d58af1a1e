"""Who is looking: credentials become a session, and a session's cookie a caller again, as long as it is valid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final
from uuid import UUID, uuid4

import orjson

from ingest.api.access import (
    CONFIGURED,
    Authenticator,
    Caller,
    Scope,
    Unauthorized,
    caller_of_claims,
    caller_of_key,
    configured_admin,
)
from ingest.api.api_keys import KeyRing
from ingest.dashboard import tokens
from ingest.dashboard.tokens import InvalidSession, Kind, Session
from ingest.dashboard.vault import Vault

LINK_SECONDS: Final = 12 * 3600


class Visitor:
    """Somebody at the dashboard: their session, their caller, and what their forms have to send."""

    __slots__ = ("caller", "form_token", "session")

    def __init__(self, session: Session, caller: Caller, form_token: str) -> None:
        self.session = session
        self.caller = caller
        self.form_token = form_token

    @property
    def name(self) -> str:
        """Who it is, for the audit of what they share: the id of the key, or the subject of the token."""
        if self.caller.key is not None:
            return self.caller.key
        return str(orjson.loads(self.caller.claims).get("sub", "token"))[:200]


class Doorkeeper:
    """Signs people in and out.

    admin_keys: those of the configuration.  verified_with: what it has to verify tokens, as any text.
    """

    def __init__(
        self,
        vault: Vault,
        keys: KeyRing,
        admin_keys: Sequence[str],
        authenticator: Authenticator,
        *,
        verified_with: str,
        hours: float,
    ) -> None:
        self._vault = vault
        self._keys = keys
        self._admin_keys = tuple(admin_keys)
        self._authenticator = authenticator
        self._verified_with = verified_with
        self._seconds = hours * 3600

    async def sign_in(self, credential: str) -> tuple[str, Session]:
        """The cookie for an API key or a JWT, and its session. Raises Unauthorized with what to do instead."""
        caller = await self._authenticator.identify(None, credential)
        if Scope.READ not in caller.scopes and Scope.ADMIN not in caller.scopes:
            raise Unauthorized("this key or token may not read: scope read or admin is needed")
        expires_at = time.time() + self._seconds
        kind: Kind = "key"
        subject = caller.key or ""
        secret = await self._vault.secret()
        if caller.key == CONFIGURED:
            kind, subject = "admin", tokens.fingerprint(credential, secret)
        elif caller.key is None:
            claims = orjson.loads(caller.claims)
            kind, subject = "token", f"{self._trust(secret)} {tokens.claims_to_keep(claims)}"
            expires_at = min(expires_at, float(claims["exp"]))
        session = Session(uuid4(), kind, subject, int(expires_at))
        try:
            return tokens.cookie_of(session, secret), session
        except ValueError:
            raise Unauthorized("the token's claims are too long for a cookie") from None

    async def sign_in_by_link(self, token: str) -> tuple[str, Session]:
        """As `sign_in`. Raises Unauthorized, also if the link was used before."""
        secret = await self._vault.secret()
        try:
            link = tokens.session_of_link(token, self._fingerprints(secret), secret, time.time())
        except InvalidSession:
            raise Unauthorized("this link is not valid, or no longer") from None
        if not await self._vault.spend(link):
            raise Unauthorized("this link has been used: each signs in once")
        session = link._replace(id=uuid4(), expires_at=int(time.time() + self._seconds))
        return tokens.cookie_of(session, secret), session

    async def visitor_of(self, cookie: str | None) -> Visitor | None:
        """Who has this cookie; None if it is not valid, or no longer. Raises Unavailable and TooSlow."""
        if not cookie:
            return None
        secret = await self._vault.secret()
        try:
            session = tokens.session_of(cookie, secret, time.time())
        except InvalidSession:
            return None
        caller = self._caller_of(session, secret)
        if caller is None or await self._vault.is_spent(session):
            return None
        return Visitor(session, caller, tokens.form_token(session.id, secret))

    def is_valid(self, session: Session) -> bool:
        """Whether somebody whose session was valid may still look, by what is known without asking the database."""
        return (
            session.expires_at > time.time()
            and self._vault.may_go_on(session)
            and self._caller_of(session, self._vault.known_secret) is not None
        )

    async def is_form_token(self, text: str, visitor: Visitor) -> bool:
        return tokens.is_form_token(text, visitor.session.id, await self._vault.secret())

    async def sign_out(self, visitor: Visitor) -> None:
        """End the session everywhere. Raises Unavailable and TooSlow."""
        await self._vault.spend(visitor.session)

    def _fingerprints(self, secret: bytes) -> list[str]:
        return [tokens.fingerprint(key, secret) for key in self._admin_keys]

    def _caller_of(self, session: Session, secret: bytes) -> Caller | None:
        if session.kind == "key":
            key = self._keys.known_by_id(UUID(session.subject))
            return caller_of_key(key) if key is not None else None
        if session.kind == "admin":
            return configured_admin() if session.subject in self._fingerprints(secret) else None
        trust, _, claims = session.subject.partition(" ")
        return caller_of_claims(orjson.loads(claims)) if trust == self._trust(secret) else None

    def _trust(self, secret: bytes) -> str:
        """What stands for the keys that tokens are verified with: once these change, so do the sessions by tokens."""
        return tokens.fingerprint(self._verified_with, secret)[:16]


async def link_for(admin_key: str, vault: Vault) -> str:
    """The path of a link that signs in once, as if with this admin key of the configuration, within LINK_SECONDS.
    Raises Unavailable and TooSlow."""
    secret = await vault.secret()
    subject = tokens.fingerprint(admin_key, secret)
    return f"/sign-in/{tokens.link_of(uuid4(), subject, int(time.time()) + LINK_SECONDS, secret)}"
