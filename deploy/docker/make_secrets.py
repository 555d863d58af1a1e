"""Makes what the containers of compose.yaml must know and nobody else: passwords, keys, and a URL with one of them.

    python make_secrets.py FOLDER

Each consumer has a folder of its own in FOLDER, which only its user can open. What is there is kept, so this may run
at every start; a value that two of them share is one value.
"""

import base64
import os
import sys
from pathlib import Path
from secrets import token_bytes, token_hex

POSTGRES = 999
"""The user of the image postgres, whose scripts read its folder."""
GRAFANA = 472
INGEST = 10001


def main(folder: Path) -> None:
    database = _kept(folder / "postgres" / "ingest_password", token_hex(24), POSTGRES)
    _kept(folder / "postgres" / "postgres_password", token_hex(24), POSTGRES)
    _kept(folder / "grafana" / "admin_password", token_hex(16), GRAFANA)
    admin = _kept(folder / "ingest" / "admin_key", token_hex(24), INGEST)
    encryption = base64.urlsafe_b64encode(token_bytes(32)).decode()
    _kept(
        folder / "ingest" / "ingest.toml",
        "# Settings that are secrets; all others are in the environment.\n"
        f'database_url = "postgresql://ingest:{database}@postgres:5432/ingest"\n'
        f'admin_keys = ["{admin}"]\n'
        f'encryption_keys = ["{encryption}"]\n',
        INGEST,
    )
    print("the dashboard's key:   docker compose exec collector cat /secrets/ingest/admin_key")
    print("Grafana's password:    docker compose exec grafana cat /secrets/grafana/admin_password")


def _kept(path: Path, value: str, owner: int) -> str:
    """What the file says; if there is none, `value`, after the file has been made. It is whole, or not there."""
    if path.exists():
        return path.read_text()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.new")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
    # Only root may give files away. Anybody else makes them for himself.
    if os.geteuid() == 0:
        os.chown(partial, owner, owner)
        os.chown(path.parent, owner, owner)
    partial.rename(path)
    return value


if __name__ == "__main__":
    main(Path(sys.argv[1]))
