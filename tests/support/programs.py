"""Programs that some tests start, and that a developer need not have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def needs(program: str, installer: str = ".ci/run") -> pytest.MarkDecorator:
    """A mark for tests that start a program, by its path. In CI they fail without it."""
    missing = not Path(program).exists() and "CI" not in os.environ
    return pytest.mark.skipif(missing, reason=f"needs Debian's {program}; {installer} installs it")
