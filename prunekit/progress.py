"""What a long job tells its caller; the command line draws bars, a library caller may stay silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
# A loop's label, or what gives it anew at every item.
Description = str | Callable[[], str]


class Progress(Protocol):
    """Follows a job's loops and messages."""

    def track(self, items: Iterable[T], description: Description, total: int) -> Iterator[T]:
        """Yield `items`, of which there are `total`, showing how far the loop has come."""

    def message(self, text: str) -> None:
        """Show one line."""


@runtime_checkable
class RunsAlone(Protocol):
    """A `Progress` of a job that shares its machine with others."""

    def alone(self) -> AbstractContextManager[None]:
        """Keep the others waiting inside the block: what it does is timed."""
        ...


def alone(progress: Progress) -> AbstractContextManager[None]:
    """Keep other jobs of the same caller waiting inside the block, where there are any."""
    return progress.alone() if isinstance(progress, RunsAlone) else nullcontext()


class SilentProgress:
    """Shows nothing."""

    def track(self, items: Iterable[T], description: Description, total: int) -> Iterator[T]:
        """Yield `items`."""
        yield from items

    def message(self, text: str) -> None:
        """Drop the line."""
