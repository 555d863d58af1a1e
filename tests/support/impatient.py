"""Clients that never send anything again, so that whoever replaces a service must not refuse a single request."""

from __future__ import annotations

import http.client
import json
import select
import threading
import uuid
from collections.abc import Mapping

CLIENT_SECONDS = 60.0


class Load:
    """Clients of every kind, until it ends. `errors`: whatever any of them saw except a 200.  `acknowledged`: ids."""

    def __init__(self, port: int, kept: int = 4, fresh: int = 4, headers: Mapping[str, str] | None = None) -> None:
        self._port = port
        self._headers = dict(headers or {})
        self._enough = threading.Event()
        self.errors: list[str] = []
        self.acknowledged: list[str] = []
        self.closes_announced = 0
        kinds = [self._keep] * kept + [self._renew] * fresh
        self._threads = [threading.Thread(target=kind, daemon=True) for kind in kinds]

    def _post(self, connection: http.client.HTTPConnection) -> bool:
        """Send one event; returns whether the connection may be used again."""
        name = str(uuid.uuid4())
        try:
            connection.request("POST", "/v1/events", json.dumps({"name": "drained", "id": name}), self._headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.errors.append(repr(error))
            return False
        if answer.status != 200:
            self.errors.append(f"status {answer.status}")
            return False
        self.acknowledged.append(name)
        if answer.will_close:
            self.closes_announced += 1
        return not answer.will_close

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=CLIENT_SECONDS)

    def _keep(self) -> None:
        connection = self._connection()
        while not self._enough.is_set():
            if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
                # Closed by the server between requests; any client checks that before it sends.
                connection.close()
            if not self._post(connection):
                connection.close()
        connection.close()

    def _renew(self) -> None:
        while not self._enough.is_set():
            connection = self._connection()
            self._post(connection)
            connection.close()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(CLIENT_SECONDS * 2)
