"""Normalised URLs: tables of examples seen in the wild, and the properties that no text raises and that normalising
is idempotent."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.events import limits
from ingest.events.values import urls
from ingest.events.values.punycode import punycode
from ingest.events.values.urls import (
    NO_PAGE,
    Page,
    describe_page,
    folded,
    host_form,
    path_form,
    referrer_host,
    strip_credentials,
    tidy,
    without_credentials,
)


def check_text(text: str | None) -> None:
    if text is not None:
        assert text
        assert "\x00" not in text
        text.encode()  # a lone surrogate raises


def hosts(*rows: tuple[str, str | None]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("url", "host"), rows)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300) | st.text("\x00\ud800\udfffé%", max_size=40)
URL_TEXT = st.lists(
    st.sampled_from(["https:", "//", "/", "?", "#", "@", ":", "[", "]", "&utm_source=", "%00", "%ff", "+", "\\"])
    | ANY_TEXT,
    max_size=12,
).map("".join)


class TestPage:
    def test_has_host_path_and_campaign(self) -> None:
        url = (
            "https://user:secret@Shop.Example.com:8443/Pricing/%C3%A4;v=1?a=b&utm_source=news%20letter"
            "&utm_medium=e+mail&utm_campaign=50%25%2Boff&utm_term=sch%C3%B6n&utm_content=#utm_content=no"
        )
        assert describe_page(url) == Page(
            "shop.example.com", "/Pricing/ä;v=1", "news letter", "e mail", "50%+off", "schön", None
        )

    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("/pricing?utm_source=x", "/pricing"),
            ("?utm_source=x#top", None),
            ("file:///C:/index.html?utm_source=x", "/C:/index.html"),
        ],
    )
    def test_may_have_no_host(self, url: str, path: str | None) -> None:
        assert describe_page(url) == NO_PAGE._replace(path=path, utm_source="x")

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "   ",
            "hello",
            "example.com/pricing",
            "localhost:3000/x",
            "about:blank?utm_source=x",
            "mailto:a@example.com",
            "javascript:alert('/')",
            "data:text/html,<p>/",
            "blob:https://example.com/1",
            "https:",
            "https://",
            "https:///path",
            "https:/example.com",
            "//",
            "https://exa mple.com/",
            "https://exam%70le%.com/",
            "https://exam%2Fple.com/",
            "https://exam%40ple.com/",
            "https://example.com:port/",
            "https://example.com\x00/",
            "https://example\ud800.com/",
            "https://[::1/",
            "https://[::zz]/",
            "https://" + "a" * 254 + "/",
        ],
    )
    def test_of_junk_is_empty(self, url: str) -> None:
        assert describe_page(url) == NO_PAGE

    @pytest.mark.parametrize(
        ("query", "source"),
        [
            ("utm_source=a&utm_source=b", "a"),
            ("xutm_source=a", None),
            ("UTM_SOURCE=a", "a"),
            ("utm_source=&utm_source=%20&utm_source=b&utm_source=c", "b"),
            ("utm%5Fsource=a", "a"),
            ("x=1&amp;utm_source=a", "a"),
            ("utm_source=Two%20%20%C2%A0Words+", "two words"),
            ("utm_source", None),
            ("utm_source=", None),
            ("utm_source=+%20", None),
            ("utm_source=a=b", "a=b"),
            ("utm_source=%", "%"),
            ("utm_source=%zz%4", "%zz%4"),
            ("utm_source=%ff%41", "\ufffda"),
            ("utm_source=%00", "\ufffd"),
            ("utm_source=\x00\ud800", "\ufffd\ufffd"),
            ("utm_source=%ED%A0%80", "\ufffd\ufffd\ufffd"),
            ("utm_source=" + "%C3%A4" * 300, "ä" * 255),
        ],
    )
    def test_reads_a_parameter(self, query: str, source: str | None) -> None:
        assert describe_page(f"https://example.com/?{query}") == Page("example.com", "/", source, *[None] * 4)

    def test_reads_what_browsers_would_tidy_up(self) -> None:
        assert describe_page(" \x1fhttps://example.com/a\nb\t \r\n")[:2] == ("example.com", "/ab")
        assert describe_page("https://example.com/\x00\ud800ä")[:2] == ("example.com", "/\ufffd\ufffdä")

    def test_a_long_one_is_cut_and_a_long_host_not_kept(self) -> None:
        page = describe_page("https://example.com/" + "a" * 5000 + "?utm_source=x")
        assert page == NO_PAGE._replace(host="example.com", path="/" + "a" * (4096 - 20), utm_source="x")
        before = urls._read_form.cache_info().currsize
        assert describe_page(f"https://{'a' * 600}.example.com/") == NO_PAGE
        assert urls._read_form.cache_info().currsize == before

    @given(URL_TEXT)
    @settings(max_examples=300)
    def test_no_text_raises(self, url: str) -> None:
        page = describe_page(url)
        for text in page:
            check_text(text)
        assert page.path is None or page.path.startswith("/")
        assert referrer_host(url) == page.host
        check_text(describe_page(f"https://example.com/?utm_term={url}").utm_term)


class TestHost:
    @hosts(
        ("https://www.Google.com/", "google.com"),
        ("https://www.google.com", "google.com"),
        ("https://exam%70le.com/", "example.com"),
        ("https://google.com?q=1", "google.com"),
        ("https://google.com#a/b", "google.com"),
        ("https://google.com.:443/", "google.com"),
        ("//cdn.example.com/x", "cdn.example.com"),
        ("https://a@b@example.com/", "example.com"),
        ("https://[2001:DB8::1]:8080/x", "2001:db8::1"),
        ("http://10.0.0.1:3000/x", "10.0.0.1"),
        ("https://münchen.de/", "xn--mnchen-3ya.de"),
        ("https://my_shop.example.com/", "my_shop.example.com"),
        ("android-app://com.google.android.gm", "com.google.android.gm"),
        ("android-app://com.google.android.gm/", "com.google.android.gm"),
        ("capacitor://localhost", "localhost"),
        ("/pricing", None),
        ("?q=1", None),
        ("www.google.com", None),
        ("$direct", None),
        ("", None),
        ("https://.", None),
        ("https://example.com:123456/", None),
    )
    def test_of_a_referrer(self, url: str, host: str | None) -> None:
        assert referrer_host(url) == host

    def test_of_a_long_referrer_is_not_kept(self) -> None:
        before = urls._read_host.cache_info().currsize
        assert referrer_host("https://example.com/" + "a" * 600) == "example.com"
        assert urls._read_host.cache_info().currsize == before


LONG_TEXTS = """
from ingest.events.values.user_agents import describe_user_agent
from ingest.events.values.urls import describe_page, folded, host_form, path_form, referrer_host, tidy
from ingest.events.values.urls import strip_credentials
from ingest.events.values.urls import without_credentials

for text in (
    "a" * 3_000_000,
    "https://" + "a:" * 1_500_000,
    "https://a/?" + "&utm_source=" * 300_000,
    "https://a/?utm_term=" + "%ff" * 1_000_000,
    "\\x00\\ud800\xe9" * 1_000_000,
    " " * 3_000_000,
    "[" * 3_000_000,
    "://" * 1_000_000 + "@",
    "https://" + "a@" * 1_500_000,
    "https://a/?" + "&ref=" * 600_000,
    "https://a/?" + "&" * 3_000_000,
    "https://a/" + "%c3%a4" * 500_000,
    "/." * 1_500_000,
):
    for function in (describe_user_agent, describe_page, referrer_host, folded, host_form, tidy, without_credentials):
        function(text)
    path_form(text[:4096])
    strip_credentials(text.encode("utf-8", "replace"))
"""


def test_patterns_take_linear_time_on_long_texts() -> None:
    # Takes under a second. A pattern that is not linear takes hours, and only a process of its own can be ended then.
    subprocess.run([sys.executable, "-c", LONG_TEXTS], check=True, timeout=120)


@pytest.mark.parametrize("before", ["gclid=" + "x" * 5000, "&".join(f"p{n}=v" for n in range(3000)), "x" * 60_000])
def test_a_campaign_after_a_long_query_is_read(before: str) -> None:
    page = describe_page(f"https://example.com/a?{before}&utm_source=news")
    assert (page.host, page.path, page.utm_source) == ("example.com", "/a", "news")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://a\\@evil.example/", "a"),
        ("HTTPS://a.example\\@evil.example/", "a.example"),
        ("http:\\\\a.example\\b@c", "a.example"),
        ("https://user@a.example\\b", "a.example"),
        ("//a.example\\@evil.example", "a.example"),
    ],
)
def test_a_backslash_ends_a_host_as_in_browsers(url: str, host: str) -> None:
    assert (describe_page(url).host, referrer_host(url)) == (host, host)


# Normalised forms.

ONE_PATH = {
    "/💥-neu": [
        "/💥-neu",
        "/%F0%9F%92%A5-neu",
        "/%f0%9f%92%a5-neu/",
        "//%F0%9f%92%A5%2dneu",
        "/a/../💥-neu",
        "/./💥-neu",
    ],
    "/pricing": [
        "/pricing",
        "/pricing/",
        "/pricing//",
        "//pricing",
        "/%70ricing",
        "/a/%2e%2E/pricing",
        "\\pricing",
        "/pricing/.",
    ],
    "/": ["/", "", "//", "/.", "/..", "/../..", "/a/..", "/%2E"],
    "/a%20b": ["/a%20b", "/a b"],
    "/café": ["/café", "/cafe\u0301", "/caf%C3%A9", "/cafe%CC%81"],
    "/a%2Fb": ["/a%2fb", "/a%2Fb"],
    "/a/b": ["/a/b", "/a\\b", "/a//b", "/a/c/../b"],
    "/100%25": ["/100%", "/100%25"],
    "/%25zz": ["/%zz", "/%25zz"],
    "/%25F0%259F": ["/%25F0%259F", "/%25F0%259f".replace("9f", "9F")],
    "/%FF%C3": ["/%ff%c3", "/%FF%C3"],
    "/@ada": ["/@ada", "/%40ada"],
    "/a;v=1": ["/a;v=1", "/a%3Bv%3D1"],
    "/Pricing": ["/Pricing"],
    "/%E2%80%8B": ["/\u200b", "/%e2%80%8b"],
    "/%2A\u0301".replace("%2A", "*"): ["/%2A%CC%81"],
}


@pytest.mark.parametrize(("form", "written"), [(form, text) for form, every in ONE_PATH.items() for text in every])
def test_all_spellings_of_a_page_are_one_value(form: str, written: str) -> None:
    for url in (
        f"https://Example.com{written}",
        f"https://www.example.com:443{written}?a#b",
        f"HTTP://x@example.com.{written}",
    ):
        assert describe_page(url)[:2] == ("example.com", form), url
    if written[:1] == "/" and written[:2] != "//":
        assert describe_page(written)[:2] == (None, form)


ONE_HOST = {
    "example.com": [
        "example.com",
        "www.example.com",
        "EXAMPLE.com.",
        "example.com:443",
        "%65xample.com",
        "exam\xadple.com",
        "ｅxample．com",
    ],
    "xn--mnchen-3ya.de": [
        "münchen.de",
        "MÜNCHEN.DE",
        "mu\u0308nchen.de",
        "xn--mnchen-3ya.de",
        "m%C3%BCnchen.de",
        "www.münchen。de",
    ],
    "xn--tda.xn--tda": ["ü.ü"],
    "xn--ls8h.la": ["💩.la"],
    "www.com": ["www.com"],
    "www.www.com": ["www.www.www.com"],
    "www": ["www", "www."],
    "2001:db8::1": ["[2001:db8:0:0::1]", "[2001:DB8::0001]:80"],
    "::ffff:1.2.3.4": ["[::FFFF:1.2.3.4]"],
}


@pytest.mark.parametrize(("form", "written"), [(form, text) for form, every in ONE_HOST.items() for text in every])
def test_all_spellings_of_a_host_are_one_value(form: str, written: str) -> None:
    assert host_form(written) == form
    assert referrer_host(f"https://u:p@{written}/x") == form


PATH_TEXT = st.lists(
    st.sampled_from(
        [
            "/",
            "//",
            ".",
            "..",
            "%",
            "%2",
            "%41",
            "%2e",
            "%2F",
            "%25",
            "%c3",
            "%a4",
            "%C3%A4",
            "%F0%9F%92%A5",
            "\\",
            "%cc%81",
            "\u0301",
            "A",
            "é",
            " ",
            "<",
            "\u200d",
            "\u212a",
            "\u1fef",
            "a" * 1500,
            "%e2%80%8b",
        ]
    )
    | st.text(max_size=5),
    max_size=14,
).map("".join)


@given(PATH_TEXT)
@settings(max_examples=400)
def test_a_normalised_path_does_not_change(text: str) -> None:
    form = path_form("/" + text.replace("\\", "/").encode("utf-8", "replace").decode())
    assert path_form(form) == form
    assert len(form) <= limits.MAX_URL_CHARACTERS
    assert describe_page(form).path == form
    if len(form) < 4000:
        assert describe_page(f"https://example.com{form}").path == form


@given(URL_TEXT)
@settings(max_examples=400)
def test_a_normalised_host_does_not_change(text: str) -> None:
    for host in (host_form(text), referrer_host(text), referrer_host(f"https://{text}")):
        if host is not None and ":" not in host:
            assert host == host.lower() and host.isascii()
            # Except for www., one of which is removed.
            assert host_form(host) == (host[4:] if host.startswith("www.") and "." in host[4:] else host)


@given(ANY_TEXT)
def test_a_normalised_value_does_not_change(text: str) -> None:
    for form in (folded, tidy):
        once = form(text)
        check_text(once)
        if once is not None and len(once) < limits.MAX_VALUE_CHARACTERS:
            assert form(once) == once


@given(st.text(max_size=40), st.data())
def test_encoded_and_plain_characters_are_the_same(text: str, data: st.DataObject) -> None:
    """Whichever characters are encoded, and in either case of the digits."""
    text = text.replace("\x00", "").replace("%", "").replace("/", "").replace("\\", "")
    plain = path_form("/" + text)
    encoded = "".join(
        [
            "".join([f"%{byte:02x}" if upper else f"%{byte:02X}" for byte in letter.encode()]) if one else letter
            for letter in text
            for one, upper in [data.draw(st.tuples(st.booleans(), st.booleans()))]
        ]
    )
    assert path_form("/" + encoded) == plain


# Credentials.

SECRETS = [
    ("https://user:secret@example.com/x", "https://example.com/x"),
    ("https://user@example.com", "https://example.com"),
    ("https://a:secret@b@example.com/", "https://example.com/"),
    ("//user:secret@example.com/", "//example.com/"),
    ("  https://user:secret@example.com/", "  https://example.com/"),
    ("https:\\\\user:secret@example.com/", "https:\\\\example.com/"),
    ("https://example.com/?next=https://u:secret@b.example/", "https://example.com/?next=https://b.example/"),
    ("postgresql://u:secret@db:5432/x", "postgresql://db:5432/x"),
    ("https://us\ter:secret@example.com/", "https://example.com/"),
    # These are not credentials.
    ("https://example.com/@ada", "https://example.com/@ada"),
    ("https://a\\@evil.example/", "https://a\\@evil.example/"),
    ("https://example.com?to=ann@shop.example", "https://example.com?to=ann@shop.example"),
    ("mailto:ann@shop.example", "mailto:ann@shop.example"),
    ("see https://example.com and ann@shop.example", "see https://example.com and ann@shop.example"),
]


@pytest.mark.parametrize(("url", "stored"), SECRETS)
def test_credentials_in_a_url_are_removed(url: str, stored: str) -> None:
    assert without_credentials(url) == stored == without_credentials(stored)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (b'{"u":"https://user:secret@example.com/","e":"a@b.c"}', b'{"u":"https://example.com/","e":"a@b.c"}'),
        (b'{"u":"https:\\/\\/user:secret@example.com\\/"}', b'{"u":"https:\\/\\/example.com\\/"}'),
        (b'{"u":"https://user:secret\\u0040example.com"}', b'{"u":"https://example.com"}'),
        (b'{"a":["https://x/","y@z"]}', b'{"a":["https://x/","y@z"]}'),
        (b'{"u":"https://example.com/@ada"}', b'{"u":"https://example.com/@ada"}'),
    ],
)
def test_credentials_in_json_are_removed(text: bytes, stored: bytes) -> None:
    assert strip_credentials(text) == stored


@given(st.text(st.sampled_from("ab-zü中ßéλ💥𐍈") | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_labels_are_encoded_as_the_codec_does(label: str) -> None:
    assert punycode(label) == label.encode("punycode").decode()


def test_a_host_with_too_many_characters_outside_ascii_is_refused() -> None:
    assert host_form(f"{'ü' * 32}.example.com") is not None
    assert host_form(f"{'ü' * 17}.{'ü' * 16}.example.com") is None
