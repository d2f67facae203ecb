"""A folder that all processes of one pytest run share: what is compiled is compiled once, whichever of them asks."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

#: Names the folder to the processes that pytest starts.
VARIABLE = "PRUNEKIT_TESTS_SHARED"


@cache
def shared_folder() -> Path:
    """The folder; whoever asks first makes it, and removes it at its end."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = tempfile.mkdtemp(prefix="prunekit-tests-")
        atexit.register(shutil.rmtree, os.environ[VARIABLE], ignore_errors=True)
    return Path(os.environ[VARIABLE])


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` as `make` filled it; who comes second waits, and makes it anew if that failed."""
    folder = shared_folder() / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a process that ends lets go of it
        if not (folder / "made").exists():
            make(folder)
            (folder / "made").touch()
    return folder
