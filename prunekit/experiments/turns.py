"""Who may compute on a machine: many jobs at once, or one alone while it times something.

Jobs compute in turns as long as one pass of a loop (a step, a batch of images) and hold a lock that they share. Who
wants to be alone closes a door first, so that no new turn begins, and waits for the turns that are under way. The
system releases both locks when a process ends, however.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from prunekit.errors import InputError
from prunekit.progress import Description, Progress

try:
    import fcntl
except ImportError:  # Windows: its locks cannot be shared
    HAS_SHARED_LOCKS = False
else:
    HAS_SHARED_LOCKS = True

T = TypeVar("T")


def require_shared_locks() -> None:
    """Raise InputError where jobs could not take turns."""
    if not HAS_SHARED_LOCKS:
        raise InputError(
            f"Expected Linux or macOS, whose file locks an experiment's jobs share, got {platform.system()}: "
            "use WSL, or give each run to prunekit run."
        )


class Turns:
    """The turns of one job among the others of an experiment on this machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = platform.node() or "machine"
        self._door, self._room = ((folder / f"{name}.{kind}").open("a") for kind in ("door", "room"))
        self._depth = 0

    def close(self) -> None:
        """Leave; the locks are released."""
        self._door.close()
        self._room.close()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Compute beside others; a turn within a turn is the same one."""
        if self._depth == 0:
            fcntl.flock(self._door, fcntl.LOCK_EX)
            fcntl.flock(self._room, fcntl.LOCK_SH)
            fcntl.flock(self._door, fcntl.LOCK_UN)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                fcntl.flock(self._room, fcntl.LOCK_UN)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Compute while no other job of the experiment does; a turn that is under way ends here, and goes on after."""
        before, self._depth = self._depth, self._depth + 1  # what loops inside is part of it
        fcntl.flock(self._room, fcntl.LOCK_UN)
        fcntl.flock(self._door, fcntl.LOCK_EX)
        fcntl.flock(self._room, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self._depth = before
            fcntl.flock(self._room, fcntl.LOCK_SH if before else fcntl.LOCK_UN)
            fcntl.flock(self._door, fcntl.LOCK_UN)


class InTurns:
    """A `Progress` of a job whose loops compute in turns, and whose timings are alone on the machine."""

    def __init__(self, progress: Progress, turns: Turns) -> None:
        self._progress, self._turns = progress, turns

    def track(self, items: Iterable[T], description: Description, total: int) -> Iterator[T]:
        """Yield `items`, each for one turn."""
        for item in self._progress.track(items, description, total):
            with self._turns.turn():
                yield item

    def message(self, text: str) -> None:
        """Pass a line on."""
        self._progress.message(text)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the machine for this job."""
        with self._turns.alone():
            yield
