"""The health check of the image: exit code 0 if the service answers /healthz with 200, 1 if it does not.

    python health.py [URL]

A module of its own, because the image has no curl, and one that imports nothing of the service, because it runs every
few seconds.
"""

import http.client
import sys
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 4


def main(url: str) -> int:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", parts.path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"{url} does not answer: {error!r}", file=sys.stderr)
        return 1
    print(f"{url} answers {status}", file=sys.stderr)
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:] or ["http://127.0.0.1:8080/healthz"]))
