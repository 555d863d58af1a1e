"""`ingest keys` as a user runs it, and what its keys are good for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from tests.support.commands import Ran, check_refused
from tests.support.databases import Server
from tests.support.service import Service, lent_database, running

Run = Callable[..., Ran]
KEY = re.compile(r"ing_[A-Za-z0-9_-]{43}")


@pytest.fixture(scope="module")
def url(postgres: Server, template: str) -> Iterator[str]:
    """A database that these tests share."""
    with lent_database(postgres, template) as lent:
        yield lent


def made(ingest: Run, url: str, *flags: str) -> str:
    """A new key, the only thing printed on stdout."""
    ran = ingest("keys", "create", *flags, url=url)
    assert ran.code == 0, ran
    assert KEY.fullmatch(ran.out.strip()), ran
    assert "not shown again" in ran.err and ran.out.strip() not in ran.err
    return ran.out.strip()


def line_of(ingest: Run, url: str, key: str) -> str:
    """The key's line in the list, which must not show the key itself."""
    ran = ingest("keys", "list", url=url)
    assert (ran.code, ran.err) == (0, "") and key not in ran.out
    [line] = [line for line in ran.out.splitlines() if line.startswith(key[:10])]
    return line


def test_a_key_is_created_shown_once_listed_and_revoked(ingest: Run, url: str):
    key = made(ingest, url, "--name", "the shop's server", "--scope", "write")
    other = made(ingest, url, "--name", "desk", "--scope=admin", "--expires-days", "30")
    assert re.search(r"the shop's server +write +\d{4}-\d\d-\d\d \d\d:\d\d +never +valid$", line_of(ingest, url, key))
    assert re.search(r"desk +admin .* valid until \d{4}-\d\d-\d\d", line_of(ingest, url, other))
    ran = ingest("keys", "revoke", "the shop's server", url=url)
    assert (ran.code, ran.out.partition(";")[0], ran.err) == (0, "revoked 1 key", "")
    assert " revoked 2" in line_of(ingest, url, key)
    check_refused(ingest("keys", "revoke", "the shop's server", url=url), "no valid key", "ingest keys list")
    assert ingest("keys", "revoke", other[:10], url=url).code == 0
    assert " revoked 2" in line_of(ingest, url, other)


def test_the_service_accepts_it_until_it_is_revoked(ingest: Run, url: str, tmp_path):
    with running(Service(tmp_path / "data", url)) as service:
        key = made(ingest, url, "--name", "reader", "--scope", "admin")
        assert service.get("/v1/leads")[0] == 401
        assert service.post("/v1/leads", {"email": "ann@shop.example"}, Authorization=f"Bearer {key}")[0] == 201
        assert ingest("keys", "revoke", "reader", url=url).code == 0
        status = 200
        while status == 200:
            status, _ = service.post("/v1/leads", {"email": "ann@shop.example"}, Authorization=f"Bearer {key}")
        assert status == 401


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("create", ["--name and --scope are required"]),
        ("create --name x", ["--scope is required", "ingest keys create --help"]),
        ("create --name  --scope read", ["what is the key for?", "--name"]),
        ("create --name x --scope hush-hush", ["--scope", "must be one of", "write", "read", "admin"]),
        ("create --name x --scope read --expires-days 0", ["--expires-days", "from 1 to 36500"]),
        ("create --name x --scope read --expires-days -1", ["--expires-days"]),
        ("create --name x --scope read --expires-days 99999", ["--expires-days", "from 1 to 36500"]),
        (f"create --name {'x' * 101} --scope read", ["--name", "100"]),
        ("create --name \x1b --scope read", ["--name", "printable"]),
        ("create x --name x --scope read", ["takes no such argument"]),
        ("crate", ["unknown action", "did you mean create?"]),
        ("create --nam x", ["`--nam`", "did you mean --name?"]),
        ("revoke", ["which key?", "ingest keys revoke --help"]),
        ("revoke x --scope read", ["`--scope` is for `ingest keys create`"]),
        ("list", ["no database yet", "ingest dev"]),
        ("revoke hush-hush --database-url postgresql://me:hush-hush@127.0.0.1:1/shop", ["connection refused"]),
    ],
)
def test_a_mistake_is_one_line(ingest_here: Run, arguments: str, words: list[str]):
    check_refused(ingest_here("keys", *arguments.split(" ")), *words)
