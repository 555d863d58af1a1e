"""Each worker's copy of the experiments, read again when one has changed, so that no request queries for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import asyncpg
import msgspec

from ingest.features.experiments.flags import Definition, Flag, FlagVariant
from ingest.postgres.pool import Pool, TooSlow, Unavailable
from ingest.postgres.queries import load_queries

logger = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 1.0
"""How long a worker may be unaware of a change made elsewhere. Polled, as LISTEN does not work through a transaction
pooler."""
_QUERIES: Final = load_queries("experiments")
_EXACT: Final = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)


class Definitions:
    """Experiments that were started and are not archived, as flags. While the database is away, the last
    known ones stay in use."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # Replaced whole by `refresh`: flags by name, by id, and the version that identifies them; None: never read.
        self.flags: Mapping[str, Flag] = {}
        self._by_id: Mapping[str, Flag] = {}
        self.version: str | None = None
        self._reading = asyncio.Lock()

    async def loaded(self) -> Mapping[str, Flag]:
        """The flags, read now if they never were; then raises Unavailable and TooSlow."""
        if self.version is None:
            await self._read()
        return self.flags

    def payload(self, experiment_id: str, variant_id: str) -> str | None:
        """A variant's payload as JSON; None if it has none."""
        flag = self._by_id.get(experiment_id)
        return flag.payload(variant_id) if flag is not None else None

    def knows(self, experiment_id: str) -> bool:
        return experiment_id in self._by_id

    async def refresh(self) -> None:
        """Read them if any has changed. To be called every REFRESH_SECONDS, and after this worker has changed one."""
        try:
            await self._read()
        except (Unavailable, TooSlow) as error:
            # The writer logs this as an error.
            logger.debug("the experiments cannot be read now: %s", error)

    async def _read(self) -> None:
        # One at a time: a caller waiting for its own change must not get what was read before it.
        async with self._reading, self._pool.lent("service") as connection:
            version = await connection.fetchval(_QUERIES["version"])
            if version == self.version:
                return
            rows = await connection.fetch(_QUERIES["definitions"])
            # In a thread: with many variants it takes a while, and requests must be answered meanwhile.
            flags = await asyncio.to_thread(_flags, rows)
            self.flags = {flag.definition.name: flag for flag in flags}
            self._by_id = {flag.definition.id: flag for flag in flags}
            self.version = rows[0]["version"] if rows else ""


def _flags(rows: list[asyncpg.Record]) -> list[Flag]:
    return [Flag(definition_of(row)) for row in rows]


class _StoredVariant(msgspec.Struct):
    id: str
    weight: Decimal = Decimal(1)
    # Empty if there is none.
    payload: msgspec.Raw = msgspec.Raw()


_VARIANT: Final = msgspec.json.Decoder(_StoredVariant)
_VARIANTS: Final = msgspec.json.Decoder(list[_StoredVariant])


def _variants(row: Mapping[str, Any]) -> list[_StoredVariant]:
    return [_VARIANT.decode(row["control_variant"]), *_VARIANTS.decode(row["test_variants"])]


def weights_of(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The ids and weights of a row's variants, the control's first."""
    return [(variant.id, float(variant.weight)) for variant in _variants(row)]


def definition_of(row: Mapping[str, Any]) -> Definition:
    """From a row of the query `definitions`."""
    return Definition(
        id=row["id"],
        name=row["name"],
        status=row["status"],
        is_active=row["is_active"],
        traffic_percentage=row["traffic_percentage"],
        variants=[
            FlagVariant(variant.id, variant.weight, bytes(variant.payload).decode() or None)
            for variant in _variants(row)
        ],
        rules=_EXACT.decode(row["targeting_rules"]),
        start_date=row["start_date"],
        end_date=row["end_date"],
        winner=row["winner_variant_id"],
    )
