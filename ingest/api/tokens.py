"""JSON Web Tokens with Supabase's claims: HS256 with a shared secret, or the public keys of a JWKS file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jwt

from ingest.api.access import InvalidToken
from ingest.base.errors import IngestError

ROLES: Final = ("anon", "authenticated", "service_role")
MIN_SECRET_BYTES: Final = 32
"""As RFC 7518, 3.2 asks for HS256."""
MAX_TOKEN_BYTES: Final = 8 * 1024
_LEEWAY_SECONDS: Final = 10
_ASYMMETRIC: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
_WRONG: Final = "the token is not valid"


class TokenVerifier:
    """Verifies tokens with one secret and the keys of one file. Raises IngestError if those are unusable."""

    def __init__(self, secret: str | None, jwks_file: Path | None, audience: str | None) -> None:
        self._audience = audience
        # The key decides on the algorithm, never the token.
        self._keys: dict[str | None, tuple[Any, str]] = {}
        if secret is not None:
            if len(secret.encode()) < MIN_SECRET_BYTES:
                raise IngestError(f"jwt_secret must have at least {MIN_SECRET_BYTES} bytes")
            self._keys[None] = (secret.encode(), "HS256")
        if jwks_file is not None:
            # A token that names no key is checked with the secret, if any: during a migration both are valid.
            self._keys = _read_keys(jwks_file) | self._keys

    def verify(self, token: str) -> Mapping[str, Any]:
        """The claims of a valid token, whose role is one of ROLES. Raises InvalidToken."""
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken(_WRONG)
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key, algorithm = self._keys.get(kid) or self._keys[None]
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp"], "verify_aud": self._audience is not None, "verify_sub": False},
            )
        except jwt.ExpiredSignatureError:
            raise InvalidToken("the token has expired") from None
        except jwt.MissingRequiredClaimError as error:
            raise InvalidToken(f"the token has no {error.claim}") from None
        except jwt.InvalidAudienceError:
            raise InvalidToken("the token is for another audience") from None
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, OverflowError, RecursionError):
            raise InvalidToken(_WRONG) from None
        if claims.get("role") not in ROLES:
            raise InvalidToken(f"the token's role must be one of {', '.join(ROLES)}")
        return claims


def _read_keys(path: Path) -> dict[str | None, tuple[Any, str]]:
    try:
        keys = jwt.PyJWKSet.from_json(path.read_text(encoding="utf-8")).keys
    except OSError as error:
        raise IngestError(f"jwks_file {path}: {error.strerror or 'cannot be read'}") from None
    except (jwt.PyJWTError, ValueError) as error:
        raise IngestError(f"jwks_file {path}: not a JWK set: {error}") from None
    found: dict[str | None, tuple[Any, str]] = {}
    for key in keys:
        # A shared secret in a public file is a mistake.
        if key.algorithm_name not in _ASYMMETRIC:
            raise IngestError(f"jwks_file {path}: a key for {key.algorithm_name} is not a public key")
        found[key.key_id] = (key.key, key.algorithm_name)
    if None not in found and len(keys) == 1:
        found[None] = (keys[0].key, keys[0].algorithm_name)
    return found
