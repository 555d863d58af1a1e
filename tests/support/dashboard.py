"""Somebody at the dashboard: signs in, opens pages, sends forms."""

from __future__ import annotations

import re
from http.cookies import SimpleCookie
from urllib.parse import urlencode

from ingest.api import api_keys
from ingest.postgres import connections
from tests.support.collector import Answer, Client

ADMIN = "an-admin-key-for-the-dashboard"
FORM_TOKEN = re.compile(r'name="form_token" value="([^"]+)"')


class Viewer:
    """A browser without its screen: keeps the cookie, follows nothing."""

    def __init__(self, client: Client, cookie: str = "") -> None:
        self.client = client
        self.cookie = cookie
        self.form_token = ""

    async def get(self, path: str, **headers: str) -> Answer:
        return await self._request("GET", path, None, headers)

    async def post(self, path: str, fields: dict[str, str] | None = None, **headers: str) -> Answer:
        """A form, with the token that forms on our pages have."""
        given = {"form_token": self.form_token, **(fields or {})}
        return await self.send(path, {name: value for name, value in given.items() if value}, **headers)

    async def send(self, path: str, fields: dict[str, str], **headers: str) -> Answer:
        headers = {"Content_Type": "application/x-www-form-urlencoded", **headers}
        return await self._request("POST", path, urlencode(fields).encode(), headers)

    async def _request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        named = {name.replace("_", "-"): value for name, value in self._with_cookie(headers).items()}
        async with self.client.session.request(
            method, self.client.url + path, data=body, headers=named, allow_redirects=False
        ) as response:
            answer = Answer(response.status, response.headers, await response.read())
        self._keep(answer)
        return answer

    async def sign_in(self, key: str, where: str = "/") -> Answer:
        answer = await self.send("/sign-in", {"key": key, "next": where})
        if answer.status == 303:
            await self.read_form_token()
        return answer

    async def read_form_token(self) -> None:
        found = FORM_TOKEN.search((await self.get("/shares")).body.decode())
        assert found is not None
        self.form_token = found[1]

    def _with_cookie(self, headers: dict[str, str]) -> dict[str, str]:
        headers = {"Accept_Encoding": "identity", "Accept": "text/html,*/*", **headers}
        return {**headers, "Cookie": self.cookie} if self.cookie else headers

    def _keep(self, answer: Answer) -> None:
        for name, morsel in cookie_of(answer).items():
            self.cookie = f"{name}={morsel.value}" if morsel["max-age"] != "0" else ""


def cookie_of(answer: Answer) -> SimpleCookie:
    return SimpleCookie(answer.headers.get("Set-Cookie", ""))


async def new_key(database_url: str, *scopes: str) -> str:
    connection = await connections.connect(database_url, purpose="tests")
    try:
        return await api_keys.create(connection, "for tests", list(scopes))
    finally:
        await connection.close()


async def signed_in(client: Client, key: str) -> Viewer:
    viewer = Viewer(client)
    assert (await viewer.sign_in(key)).status == 303
    return viewer
