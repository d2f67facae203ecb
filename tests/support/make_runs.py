"""Run `make` as a user does, also when the tests themselves were started by `make`."""

from __future__ import annotations

import os
import subprocess

from tests.support import ROOT

# What a `make` above hands down: its options and assignments, which would join those of the command under test, and
# its level, at which a `make` below announces the folders that it enters.
_HANDED_DOWN = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MAKEFILES", "GNUMAKEFLAGS")


def run_make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `make` in the project's folder, with further variables of the environment; return how it ended."""
    variables = {name: value for name, value in os.environ.items() if name not in _HANDED_DOWN}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=variables | environment, capture_output=True, text=True, check=False
    )
