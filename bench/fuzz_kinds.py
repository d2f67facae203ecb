"""What a kind of file is to `bench.fuzz_files`: how to write a valid one, and how to open and judge one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol, runtime_checkable


class Kind(Protocol):
    """A kind of file that prunekit reads.

    Attributes:
        name: What `--kind` calls it.
    """

    name: str

    def write(self, folder: Path) -> Path:
        """Write a valid file, and whatever it needs beside it, into an empty folder; return the file to damage."""
        ...

    def open(self, path: Path) -> object:
        """Open a file and use what it holds, as a user does; return what `is_right` judges.

        Raises:
            InputError: The file is refused; any other exception is a fault.
        """
        ...

    def is_right(self, expected: object, found: object) -> bool:
        """Return whether what a damaged file gave is right.

        Args:
            expected: What `open` returned for the valid file.
            found: What it returned for the damaged one.
        """
        ...


@runtime_checkable
class SelfDamaging(Protocol):
    """A kind that damages its files by itself."""

    def mutate(self, content: bytes, rng: random.Random) -> bytes:
        """Return a damaged copy of a file's content."""
        ...
