"""Units: channels that only go together, each with the reason why it may not go, where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


class Units:
    """A union-find over labels. Every channel of every value carries a label; tied labels are one unit."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._pinned: dict[int, str] = {}
        self._varied: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def fresh(self, count: int) -> Labels:
        """Return so many labels that are tied to nothing."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, label: int) -> int:
        """Return the label that stands for all those tied to `label`."""
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label

    def tie(self, first: Labels, second: Labels) -> None:
        """Tie two lists of labels, one by one."""
        assert len(first) == len(second)
        for a, b in zip(first[first != second].tolist(), second[first != second].tolist(), strict=True):
            low, high = sorted((self.find(a), self.find(b)))
            self._parents[high] = low

    def pin(self, labels: Labels, reason: str) -> None:
        """Keep these channels whatever their masks say; the first reason given is the one that is told."""
        for label in labels.tolist():
            self._pinned.setdefault(label, reason)

    def note_variation(self, labels: Labels, reason: str) -> None:
        """Remember why channels that were constant are so no longer."""
        for label in labels.tolist():
            self._varied.setdefault(label, reason)

    def roots(self) -> Labels:
        """Return the unit of every label."""
        parents = np.array(self._parents, dtype=np.int64)
        while not np.array_equal(parents, parents[parents]):
            parents = parents[parents]
        return parents

    def pinned(self) -> dict[int, str]:
        """Return unit → why it stays."""
        return self._of_units(self._pinned)

    def varied(self) -> dict[int, str]:
        """Return unit → why it is not constant although its filter is masked."""
        return self._of_units(self._varied)

    def _of_units(self, reasons: dict[int, str]) -> dict[int, str]:
        found: dict[int, str] = {}
        for label, reason in reasons.items():
            found.setdefault(self.find(label), reason)
        return found


def sharing(units: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """Return the names in groups that share units, all in the order of `units`."""
    members: dict[int, list[str]] = {}
    group_of: dict[int, int] = {}
    for number, (name, own) in enumerate(units.items()):
        met = {group_of[unit] for unit in own if unit in group_of}
        members[number] = [other for group in met for other in members.pop(group)] + [name]
        group_of = {unit: number if group in met else group for unit, group in group_of.items()}
        group_of.update(dict.fromkeys(own, number))
    order = {name: at for at, name in enumerate(units)}
    groups = (sorted(names, key=order.__getitem__) for names in members.values())
    return sorted(groups, key=lambda names: order[names[0]])
