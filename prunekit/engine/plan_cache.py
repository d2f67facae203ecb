"""The plans that a program keeps, bounded by the memory that they hold."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, Protocol, TypeVar

from torch import Tensor

# A sixteenth of the machine's memory, at least half a GiB: of a YOLOv3 at 416 pixels and 90 % zeros a size takes some
# 60 MB (arena, packed filters, tables), so that a dozen sizes in turn are not planned again and again.
_SHARE_OF_MEMORY = 16
_LEAST_BYTES = 2**29


class Planned(Protocol):
    """What is kept: something that knows how much memory it holds."""

    @property
    def num_bytes(self) -> int:
        """Bytes of memory."""
        ...


P = TypeVar("P", bound=Planned)


def default_budget() -> int:
    """Return how many bytes of plans a program keeps on this machine."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        memory = 0
    return max(_LEAST_BYTES, memory // _SHARE_OF_MEMORY)


class PlanCache(Generic[P]):
    """Plans by what they are for; the one that was used longest ago goes first. The caller holds a lock."""

    def __init__(self, budget: int | None = None) -> None:
        """Keep plans of up to `budget` bytes, and the last one used however large it is."""
        self.budget = default_budget() if budget is None else budget
        self._plans: OrderedDict[Hashable, P] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], P]) -> P:
        """Return the plan for `key`, made by `make` where it is not there."""
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        plan = self._plans[key] = make()
        self._bytes += plan.num_bytes
        while self._bytes > self.budget and len(self._plans) > 1:
            _, oldest = self._plans.popitem(last=False)
            self._bytes -= oldest.num_bytes
        return plan

    def values(self) -> list[P]:
        """Return the plans, the last used one last."""
        return list(self._plans.values())


def bytes_of(things: Iterable[object]) -> int:
    """Return the bytes of tensors and arrays, and of those that objects among them hold."""
    total = 0
    for thing in things:
        if isinstance(thing, Tensor) or hasattr(thing, "nbytes"):
            total += int(thing.nbytes)
        else:
            total += bytes_of(value for value in vars(thing).values() if hasattr(value, "nbytes"))
    return total
