"""Signed tokens: the cookie of who is signed in, sign-in links, and the tokens of forms. Pure.

A cookie is `PAYLOAD.SIGNATURE`, both in base64url without padding. The payload is JSON, the signature HMAC-SHA-256
(RFC 2104) over the token's purpose and the payload, so that a link cannot be used as a cookie.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import orjson

SECRET_BYTES: Final = 32
_COOKIE: Final = b"cookie"
_LINK_PAYLOAD: Final = 20
_FORM: Final = b"form"
_MAX_CHARACTERS: Final = 3800
"""Browsers keep cookies of up to 4,096 bytes, name and attributes included (RFC 6265, 6.1)."""

Kind = Literal["key", "admin", "token"]


class Session(NamedTuple):
    """Who has signed in, and until when.

    kind: by an API key, an admin key of the configuration, or a JWT.  subject: the key's id, the admin key's
    fingerprint, or the claims as JSON.  expires_at: seconds since 1970.
    """

    id: UUID
    kind: Kind
    subject: str
    expires_at: int


class InvalidSession(Exception):
    """The text is no token of ours, or it has expired."""


def cookie_of(session: Session, secret: bytes) -> str:
    """The cookie's value. Raises ValueError if browsers would not keep it."""
    text = _signed(session, _COOKIE, secret)
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"a cookie of {len(text)} characters")
    return text


def session_of(cookie: str, secret: bytes, now: float) -> Session:
    """The session in a cookie's value. Raises InvalidSession."""
    return _read(cookie, _COOKIE, secret, now)


def link_of(link_id: UUID, subject: str, expires_at: int, secret: bytes) -> str:
    """The token of a link that signs in as an admin with the admin key of this fingerprint: short, as people may have
    to copy it."""
    payload = link_id.bytes + struct.pack(">I", expires_at)
    return _encoded(payload + _mac_of_link(payload, subject, secret))


def session_of_link(token: str, subjects: Iterable[str], secret: bytes, now: float) -> Session:
    """The session that a link is for, with the link's id and end. `subjects`: fingerprints of the admin keys that are
    valid. Raises InvalidSession."""
    content = _decoded(token)
    payload, signature = content[:_LINK_PAYLOAD], content[_LINK_PAYLOAD:]
    if len(payload) == _LINK_PAYLOAD:
        for subject in subjects:
            if hmac.compare_digest(signature, _mac_of_link(payload, subject, secret)):
                (expires_at,) = struct.unpack(">I", payload[16:])
                if expires_at > now:
                    return Session(UUID(bytes=payload[:16]), "admin", subject, expires_at)
    raise InvalidSession


def _mac_of_link(payload: bytes, subject: str, secret: bytes) -> bytes:
    return _mac(b"link", payload + subject.encode(), secret)[:16]


def token_of_share(share_id: UUID, secret: bytes) -> str:
    """The secret part of the link to a shared view."""
    return _encoded(share_id.bytes + _mac(b"share", share_id.bytes, secret)[:16])


def share_of(token: str, secret: bytes) -> UUID:
    """The id of the view that a link shares. Raises InvalidSession."""
    content = _decoded(token)
    if not hmac.compare_digest(content[16:], _mac(b"share", content[:16], secret)[:16]):
        raise InvalidSession
    return UUID(bytes=content[:16])


def form_token(session_id: UUID, secret: bytes) -> str:
    """What a form of this session has to send, so that no other site's form is taken for ours."""
    return _encoded(_mac(_FORM, session_id.bytes, secret))


def is_form_token(text: str, session_id: UUID, secret: bytes) -> bool:
    return hmac.compare_digest(text.encode("utf-8", "replace"), form_token(session_id, secret).encode())


def fingerprint(key: str, secret: bytes) -> str:
    """What a cookie holds of an admin key of the configuration: nothing from which the key could be found."""
    return _mac(b"admin key", key.encode("utf-8", "replace"), secret).hex()


def _signed(session: Session, purpose: bytes, secret: bytes) -> str:
    payload = orjson.dumps([session.id, session.kind, session.subject, session.expires_at])
    return f"{_encoded(payload)}.{_encoded(_mac(purpose, payload, secret))}"


def _read(text: str, purpose: bytes, secret: bytes, now: float) -> Session:
    if len(text) > _MAX_CHARACTERS:
        raise InvalidSession
    payload_text, _, signature_text = text.partition(".")
    payload, signature = _decoded(payload_text), _decoded(signature_text)
    if not hmac.compare_digest(signature, _mac(purpose, payload, secret)):
        raise InvalidSession
    # Signed by us, so it has this form.
    id_text, kind, subject, expires_at = orjson.loads(payload)
    if expires_at <= now:
        raise InvalidSession
    return Session(UUID(id_text), kind, subject, expires_at)


def _mac(purpose: bytes, content: bytes, secret: bytes) -> bytes:
    return hmac.new(secret, purpose + b"\0" + content, hashlib.sha256).digest()


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    """The bytes, unless they are spelled in another way than ours: the last character may have bits to spare."""
    try:
        content = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise InvalidSession from None
    if _encoded(content) != text:
        raise InvalidSession
    return content


def claims_to_keep(claims: dict[str, Any]) -> str:
    """The claims of a JWT that policies read, as JSON: a cookie has no room for all."""
    metadata = claims.get("app_metadata")
    role = metadata.get("role") if isinstance(metadata, dict) else None
    kept = {name: claims[name] for name in ("sub", "role", "email") if name in claims}
    return orjson.dumps({**kept, "app_metadata": {"role": role}}).decode()
