"""A folder that one process at a time works in, and in which a killed one has left nothing half-written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from prunekit.errors import InputError

LOCK = ".lock"
# What prunekit.files.atomic_path, and safetensors beneath it, leave behind when a process is killed while it writes.
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?|\.tmp[0-9A-Za-z]{6}")


def check_folder(root: Path, marker: str, what: str) -> bool:
    """Return whether `root` holds what the file `marker` stands for; raise InputError if it holds anything else.

    Args:
        root: The folder that --out names.
        marker: The file that is written first.
        what: Whose folder is expected, as in "a run's".
    """
    if root.exists() and not root.is_dir():
        raise InputError(f"--out: expected a folder, but {root} is a file.")
    if not any(not path.name.startswith(".") for path in root.glob("*")):
        return False
    if not (root / marker).is_file():
        raise InputError(f"--out: expected a new folder or {what}, but {root} holds other files; choose another.")
    return True


@contextmanager
def claimed(root: Path) -> Iterator[None]:
    """Make the folder if it is new, and work in it alone; the system releases it when the process ends, however.

    Raises:
        InputError: When another process works in it.
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        claim = FileLock(root / LOCK).acquire(blocking=False)
    except Timeout:
        raise InputError(f"--out: another process is working in {root}; choose another folder.") from None
    with claim:
        for path in root.rglob(".*"):
            if path.is_file() and _LEFTOVER.fullmatch(path.name):
                path.unlink()
        yield
