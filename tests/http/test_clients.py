"""Where a request comes from: trusted proxies' headers, concealing addresses, looking up countries."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from ingest.events.values import locations
from ingest.events.values.locations import (
    COUNTRIES,
    COUNTRY_HEADERS,
    CountryDatabase,
    Network,
    anonymise,
    client_address,
    country_from_headers,
    is_proxy,
    parse_networks,
    public_address,
    rate_limit_key,
)
from tests.support.countries import write_database

TRUSTED = parse_networks(["10.0.0.0/8", "192.168.1.1", "2001:db8:ffff::/48"])
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=80)
FORWARDED = st.lists(
    ANY_TEXT
    | st.ip_addresses().map(str)
    | st.sampled_from(["10.0.0.1", "[::1]:80", '"1.2.3.4:5"', "::ffff:10.1.1.1", "fe80::1%eth0"]),
    max_size=5,
).map(", ".join)


def is_canonical(address: str) -> bool:
    return address == "" or str(ip_address(address)) == address


class TestClientAddress:
    @pytest.mark.parametrize(
        ("peer", "forwarded_for", "client"),
        [
            ("203.0.113.5", None, "203.0.113.5"),
            ("203.0.113.5", "198.51.100.1", "203.0.113.5"),  # from an untrusted peer
            ("10.0.0.1", None, "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "203.0.113.5", "203.0.113.5"),
            ("192.168.1.1", "203.0.113.5", "203.0.113.5"),
            ("10.0.0.1", "198.51.100.1, 203.0.113.5", "203.0.113.5"),  # the left one may be forged
            ("10.0.0.1", "198.51.100.1,203.0.113.5 , 10.0.0.9,10.0.0.8", "203.0.113.5"),
            ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("10.0.0.1", "203.0.113.5:4711", "203.0.113.5"),
            ("10.0.0.1", '"203.0.113.5:4711"', "203.0.113.5"),
            ("10.0.0.1", "[2001:DB8:0::1]:80", "2001:db8::1"),
            ("10.0.0.1", '"[2001:db8::1]"', "2001:db8::1"),
            ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
            ("10.0.0.1", "fe80::1%eth0", "fe80::1"),
            ("10.0.0.1", "::ffff:203.0.113.5", "203.0.113.5"),
            ("::ffff:10.0.0.1", "203.0.113.5", "203.0.113.5"),
            ("2001:db8:ffff::9", "203.0.113.5", "203.0.113.5"),
            ("10.0.0.1", "203.0.113.5, unknown, 10.0.0.2", "10.0.0.2"),  # nothing to the left of junk is trusted
            ("10.0.0.1", "203.0.113.5, 10.0.0.2,", "10.0.0.1"),
            ("10.0.0.1", "junk", "10.0.0.1"),
            ("10.0.0.1", "1.2.3.4%eth0", "10.0.0.1"),
            ("10.0.0.1", "01.2.3.4", "10.0.0.1"),
            ("10.0.0.1", "٣.٣.٣.٣", "10.0.0.1"),
            ("10.0.0.1", "9" * 5000, "10.0.0.1"),
            ("", "203.0.113.5", "203.0.113.5"),  # a Unix socket: a proxy on this machine
            ("", "198.51.100.1, 203.0.113.5, 10.0.0.2", "203.0.113.5"),
            ("", None, ""),
            ("", "junk", ""),
        ],
    )
    def test_behind_proxies(self, peer: str, forwarded_for: str | None, client: str) -> None:
        assert client_address(peer, forwarded_for, TRUSTED) == client
        assert client_address(peer, forwarded_for, list(TRUSTED)) == client

    @pytest.mark.parametrize(
        ("peer", "client"),
        [
            ("203.0.113.5", "203.0.113.5"),
            ("::ffff:203.0.113.5", "203.0.113.5"),
            ("2001:DB8:0:0::1", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("", ""),
            ("/run/proxy.sock", ""),
            ("1" * 5000, ""),
        ],
    )
    def test_without_proxies_is_the_peers(self, peer: str, client: str) -> None:
        assert client_address(peer, "198.51.100.1", ()) == client

    def test_a_long_header_is_read_from_the_right_and_not_kept(self) -> None:
        before = locations._find_client.cache_info().currsize
        assert client_address("10.0.0.1", "x," * 5000 + "203.0.113.5", TRUSTED) == "203.0.113.5"
        # More hops than anybody has: the last one examined.
        assert client_address("10.0.0.1", "203.0.113.5" + ", 10.0.0.2" * 5000, TRUSTED) == "10.0.0.2"
        assert locations._find_client.cache_info().currsize == before

    @given(ANY_TEXT | st.sampled_from(["", "10.0.0.1", "::1"]), FORWARDED | ANY_TEXT | st.none())
    def test_no_text_raises(self, peer: str, forwarded_for: str | None) -> None:
        for trusted in (TRUSTED, ()):
            assert is_canonical(client_address(peer, forwarded_for, trusted))


class TestConcealing:
    @pytest.mark.parametrize(
        ("address", "concealed", "limited"),
        [
            ("203.0.113.5", "203.0.113.0", "203.0.113.5"),
            ("::ffff:203.0.113.5", "203.0.113.0", "203.0.113.5"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1::", "2001:db8:1:2::/64"),
            ("2001:db8::1", "2001:db8::", "2001:db8::/64"),
            ("fe80::1%eth0", "fe80::", "fe80::/64"),
            ("::1", "::", "::/64"),
            ("", "", ""),
            ("junk", "", ""),
            ("1" * 5000, "", ""),
        ],
    )
    def test_of_an_address(self, address: str, concealed: str, limited: str) -> None:
        assert anonymise(address) == concealed
        assert rate_limit_key(address) == limited

    @given(ANY_TEXT | st.ip_addresses().map(str))
    def test_no_text_raises(self, address: str) -> None:
        concealed = anonymise(address)
        assert is_canonical(concealed)
        assert anonymise(concealed) == concealed
        rate_limit_key(address).encode()


class TestPublicAddresses:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("1.2.3.4", "1.2.3.4"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("2600:1F00::0001", "2600:1f00::1"),
            ("2600:1f00::1%eth0", "2600:1f00::1"),
            ("10.1.2.3", ""),
            ("172.16.1.2", ""),
            ("192.168.1.2", ""),
            ("127.0.0.1", ""),
            ("169.254.169.254", ""),
            ("100.64.0.1", ""),
            ("203.0.113.5", ""),
            ("0.0.0.0", ""),
            ("255.255.255.255", ""),
            ("224.0.1.1", ""),
            ("::", ""),
            ("::1", ""),
            ("fe80::1", ""),
            ("fc00::1", ""),
            ("ff0e::1", ""),
            ("::ffff:10.1.2.3", ""),
            ("1.2.3.4:80", "1.2.3.4"),
            (" 1.2.3.4\t", "1.2.3.4"),
            ('"1.2.3.4:80"', "1.2.3.4"),
            ("1.2.3.4, 5.6.7.8", "1.2.3.4"),
            ("10.0.0.1, unknown,5.6.7.8:80, 10.0.0.2", "5.6.7.8"),
            ("[2600:1f00::1]:443", "2600:1f00::1"),
            ("[2600:1f00::1]", "2600:1f00::1"),
            ("10.0.0.1, 192.168.1.1", ""),
            (",,", ""),
            ("1.2.3.4 5.6.7.8", ""),
            ("1.2.3", ""),
            ("", ""),
            ("junk", ""),
            ("1" * 5000, ""),
        ],
    )
    def test_of_a_text(self, text: str, address: str) -> None:
        assert public_address(text) == address

    @given(ANY_TEXT | st.ip_addresses().map(str))
    def test_no_text_raises(self, text: str) -> None:
        assert is_canonical(public_address(text))


class TestNetworks:
    def test_are_parsed(self) -> None:
        networks = parse_networks(["10.0.0.0/8", " 127.0.0.1 ", "2001:db8::/32", "::ffff:172.16.0.0/108"])
        assert [str(network) for network in networks] == [
            "10.0.0.0/8",
            "127.0.0.1/32",
            "2001:db8::/32",
            "172.16.0.0/12",
        ]
        assert parse_networks([]) == ()

    @pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "example.com", "*"])
    def test_a_bad_one_is_named_in_one_line(self, text: str) -> None:
        with pytest.raises(ValueError, match="not an address or network") as raised:
            parse_networks(["10.0.0.0/8", text])
        assert repr(text) in str(raised.value)
        assert "\n" not in str(raised.value)


class TestCountryHeaders:
    @pytest.mark.parametrize("name", COUNTRY_HEADERS)
    def test_each_is_read(self, name: str) -> None:
        assert country_from_headers({name: "AU"}) == "AU"
        assert country_from_headers(CIMultiDict({name.upper(): "de"})) == "DE"

    @pytest.mark.parametrize(
        "text",
        [
            "XX",
            "T1",
            "ZZ",
            "EU",
            "AP",
            "A1",
            "A2",
            "O1",
            "XK",
            "UK",
            "AA",
            "QQ",
            "eu",
            "SU",
            "AN",
            "QM",
            "XZ",
            "",
            "A",
            "AUS",
            "A1",
            "ÄÖ",
            "ß",
            "A\x00",
            "\ud800A",
            "A" * 99,
        ],
    )
    def test_what_is_no_country_is_unknown(self, text: str) -> None:
        assert country_from_headers({"CF-IPCountry": text}) is None
        assert country_from_headers({"CF-IPCountry": text, "X-Country-Code": "NZ"}) == "NZ"

    def test_all_assigned_codes_are_countries_and_no_other(self) -> None:
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        known = {a + b for a in letters for b in letters if country_from_headers({"X-Country-Code": a + b})}
        assert known == COUNTRIES and len(known) == 249

    @pytest.mark.parametrize(
        ("peer", "trusted", "is_one"),
        [
            ("10.0.0.1", TRUSTED, True),
            ("::ffff:10.0.0.1", TRUSTED, True),
            ("192.168.1.1", TRUSTED, True),
            ("2001:db8:ffff::1", TRUSTED, True),
            ("", TRUSTED, True),  # a Unix socket
            ("192.168.1.2", TRUSTED, False),
            ("203.0.113.5", TRUSTED, False),
            ("10.0.0.1", (), False),
            ("", (), False),
        ],
    )
    def test_are_believed_from_trusted_proxies(self, peer: str, trusted: tuple[Network, ...], is_one: bool) -> None:
        assert is_proxy(peer, trusted) is is_one

    def test_none_at_all(self) -> None:
        assert country_from_headers({}) is None

    @given(ANY_TEXT)
    def test_no_text_raises(self, text: str) -> None:
        country = country_from_headers({"X-Country-Code": text})
        assert country is None or (len(country) == 2 and country.isascii() and country.isupper())


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> CountryDatabase:
    return CountryDatabase(write_database(tmp_path_factory.mktemp("geoip") / "city.mmdb"))


class TestCountryDatabase:
    @pytest.mark.parametrize(
        ("address", "country", "region"),
        [
            ("1.2.3.4", "AU", "NSW"),
            ("1.2.3.0", "AU", "NSW"),
            ("::ffff:1.2.3.4", "AU", "NSW"),
            ("2.2.3.4", "DE", None),
            ("3.2.3.4", "FR", "Bretagne"),
            ("4.2.3.4", "ES", "Galicia\ufffd"),
            ("5.2.3.4", "NL", None),
            ("6.2.3.4", None, None),
            ("7.2.3.4", None, None),
            ("8.2.3.4", None, None),
            ("9.2.3.4", None, None),
            ("203.0.113.5", None, None),
            ("2001:db8::1", "JP", None),
            ("2001:db9::1", None, None),
            ("", None, None),
            ("junk", None, None),
            ("1" * 5000, None, None),
        ],
    )
    def test_locates(self, database: CountryDatabase, address: str, country: str | None, region: str | None) -> None:
        assert database.locate(address) == (country, region)

    @given(ANY_TEXT | st.ip_addresses().map(str))
    def test_no_text_raises(self, database: CountryDatabase, address: str) -> None:
        for text in database.locate(address):
            assert text is None or text.encode()

    def test_of_ipv4_only(self, tmp_path: Path) -> None:
        database = CountryDatabase(write_database(tmp_path / "four.mmdb", ip_version=4))
        assert database.locate("2.0.0.1") == ("DE", None)
        assert database.locate("2001:db8::1") == (None, None)

    def test_once_closed_knows_nothing_new(self, tmp_path: Path) -> None:
        database = CountryDatabase(str(write_database(tmp_path / "city.mmdb")))
        assert database.locate("2.0.0.1") == ("DE", None)
        database.close()
        assert database.locate("2.0.0.1") == ("DE", None)
        assert database.locate("2.0.0.2") == (None, None)

    def test_a_damaged_one_never_raises(self, tmp_path: Path) -> None:
        path = write_database(tmp_path / "city.mmdb")
        whole = path.read_bytes()
        marker = whole.rindex(b"\xab\xcd\xefMaxMind.com")
        path.write_bytes(whole[: marker // 2] + b"\xff" * (marker - marker // 2) + whole[marker:])
        database = CountryDatabase(path)
        for first in range(1, 224):
            database.locate(f"{first}.2.3.4")

    def test_a_missing_one_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"cannot read the country database .*nope\.mmdb: No such file"):
            CountryDatabase(tmp_path / "nope.mmdb")

    @pytest.mark.parametrize("content", [b"", b"junk" * 1000])
    def test_another_file_is_named(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "junk.mmdb"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"junk\.mmdb is not a MaxMind database"):
            CountryDatabase(path)

    def test_a_folder_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError):
            CountryDatabase(tmp_path)
