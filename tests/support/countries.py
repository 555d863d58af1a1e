"""A database of countries, like MaxMind's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet

RECORDS: dict[str, Any] = {
    "1.0.0.0/8": {
        "country": {"iso_code": "AU", "names": {"en": "Australia"}},
        "subdivisions": [{"iso_code": "NSW", "names": {"en": "New South Wales"}}],
    },
    "2.0.0.0/8": {"country": {"iso_code": "DE"}},
    "3.0.0.0/8": {"country": {"iso_code": "FR"}, "subdivisions": [{"names": {"en": "Bretagne"}}]},
    "4.0.0.0/8": {"country": "Spain", "country_code": "ES", "region": "Galicia\x00"},
    "5.0.0.0/8": {"country": "NL"},
    "6.0.0.0/8": {"continent": {"code": "EU"}},
    "7.0.0.0/8": {"country": {"iso_code": 7}, "subdivisions": [7]},
    "8.0.0.0/8": {"country": ["x"], "subdivisions": [{"names": "x"}], "region": 8},
    "9.0.0.0/8": "text",
    "2001:db8::/32": {"country": {"iso_code": "JP"}},
}


def write_database(path: Path, ip_version: int = 6) -> Path:
    writer = MMDBWriter(ip_version, "Test-City", languages=["en"], ipv4_compatible=ip_version == 6)
    for network, record in RECORDS.items():
        if ip_version == 6 or ":" not in network:
            writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(path))
    return path
