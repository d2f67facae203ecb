"""Atomic writing: a file is complete under its final name or not there at all; and what rows are as CSV."""

from __future__ import annotations

import csv
import io
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prunekit.errors import InputError


def cache_folder() -> Path:
    """Return where choices of earlier runs are kept: PRUNEKIT_CACHE, or prunekit/ in XDG_CACHE_HOME or ~/.cache.

    Raises:
        RuntimeError: the user has no home folder.
    """
    folder, base = os.environ.get("PRUNEKIT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(folder) if folder else (Path(base) if base else Path.home() / ".cache") / "prunekit"


def check_writable_file(path: Path, option: str) -> None:
    """Refuse a place where no file can be written, before the work whose result it is for.

    Args:
        path: Where the file will be written, in folders that need not be there yet.
        option: What named it, for the message.

    Raises:
        InputError: A folder is there, or no folder for it can be made or written.
    """
    if path.is_dir():
        raise InputError(f"{option}: expected a file to write, got a folder: {path}.")
    check_writable_folder(path.parent, option)


def check_writable_folder(path: Path, option: str) -> None:
    """Refuse a place that is not a folder to write into and cannot become one; arguments as of `check_writable_file`.

    Raises:
        InputError: A file is there or in the place of a folder above it, or the nearest folder cannot be written.
    """
    nearest = next((place for place in (path, *path.parents) if place.exists()), Path())
    if not nearest.is_dir():
        raise InputError(f"{option}: expected a folder to write into, but {nearest} is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{option}: expected a folder that can be written, got {nearest}, which cannot.")
    if nearest != path:
        try:  # permissions are not all: nothing can be made in /proc
            Path(tempfile.mkdtemp(prefix=".prunekit-", dir=nearest)).rmdir()
        except OSError as error:
            raise InputError(
                f"{option}: expected a folder that can be made, but {nearest} takes none ({error.strerror})."
            ) from None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` when the block succeeds.

    The temporary name keeps the suffix, because some writers choose their format by it. Missing
    parent folders are made. When the block raises, nothing is left behind and `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8 with Unix line ends."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def csv_text(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a header and rows as CSV with Unix line ends; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(header), *(list(row) for row in rows)])
    return text.getvalue()
