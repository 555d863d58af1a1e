"""Countries: the table is complete, and what is not in it stays as it is."""

from __future__ import annotations

import re

import pytest

from ingest.dashboard.countries import NAMES, flag, name


def test_the_table_has_each_country_once():
    # ISO 3166-1 has 249, and there is Kosovo's code.
    assert len(NAMES) == 250
    assert len(set(NAMES.values())) == 250
    assert all(re.fullmatch("[A-Z]{2}", code) for code in NAMES)
    assert all(2 < len(each) < 40 and each == each.strip() and each[0].isupper() for each in NAMES.values())


def test_its_codes_are_those_of_the_time_zone_database():
    """Which has a table of its own, and is installed wherever we are."""
    from importlib.resources import files

    lines = (files("tzdata") / "zoneinfo" / "iso3166.tab").read_text().splitlines()
    codes = {line.split("\t")[0] for line in lines if line and not line.startswith("#")}
    assert NAMES.keys() - {"XK"} == codes


@pytest.mark.parametrize(
    ("code", "country", "letters"),
    [("DE", "Germany", "🇩🇪"), ("us", "United States", "🇺🇸"), ("CI", "Côte d'Ivoire", "🇨🇮"), ("TR", "Türkiye", "🇹🇷")],
)
def test_a_country_has_a_name_and_a_flag(code: str, country: str, letters: str):
    assert (name(code), flag(code)) == (country, letters)


@pytest.mark.parametrize("code", ["ZZ", "", "D", "DEU", "T1", "<b>", "ẞß", "ıd", "日本", "x" * 10_000])
def test_what_is_no_code_stays_as_it_is(code: str):
    assert (name(code), flag(code)) == (code, "")
