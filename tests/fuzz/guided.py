"""A target under atheris, in a process of its own, as libFuzzer ends the process it runs in:
`python -m tests.fuzz.guided TARGET FINDINGS URL LIBFUZZER_ARGUMENT ...`. Called by `python -m tests.fuzz`."""

from __future__ import annotations

import hashlib
import sys
from contextlib import ExitStack
from pathlib import Path

import atheris

from tests.fuzz.targets import Finding, opened


def main() -> None:
    name, findings, url, *arguments = sys.argv[1:]
    with ExitStack() as stack:
        with atheris.instrument_imports(include=["ingest"]):
            target = stack.enter_context(opened(name, url or None))

        def check(data: bytes) -> None:
            try:
                target.check(data)
            except Finding as found:
                # libFuzzer keeps the input that was just given, which is another one.
                file = Path(findings) / f"finding-{hashlib.sha1(found.culprit).hexdigest()}"
                file.write_bytes(found.culprit)
                raise

        atheris.Setup([sys.argv[0], f"-artifact_prefix={findings}/", *arguments], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
