"""Which units stay: what the outputs need, carriers, and what the shapes of layers ask for.

What is needed is found backwards from the outputs: a filter that stays needs every channel that it has weights on and
that varies. A channel that is a constant is not needed, whatever the constant. All later steps only add units, each
with everything that it needs, so that a channel that stays is always the original's.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from prunekit.graph.channels.channel_flow import ChannelFlow, Equal, Layer
from prunekit.graph.channels.units import Labels

Bools = npt.NDArray[np.bool_]

#: A constant carries another if it is at least this share of it: no weight grows by more than the inverse.
_LEAST_SHARE = 0.01


class Choice:
    """The units that stay, and why.

    Attributes:
        kept: bool, by unit.
        reasons: Unit → why it stays although nothing live may be in it.
        carriers: Unit → the layers that it is a carrier for.
    """

    def __init__(self, flow: ChannelFlow, multiple_of: int = 1) -> None:
        self.flow, self.roots = flow, flow.units.roots()
        self.kept: Bools = np.zeros(len(flow.units), dtype=bool)
        self.reasons: dict[int, str] = {}
        self.carriers: dict[int, list[str]] = {}
        self._silent = self._silent_units()
        self._seen: dict[str, Bools] = {}
        for unit, reason in flow.units.pinned().items():
            self._keep([unit], reason)
        self._spread()
        steps = (self._one_at_least, self._equal_parts, self._carry, lambda: self._round(multiple_of))
        before = -1
        while before != (before := int(self.kept.sum())):
            for step in steps:
                step()

    def units(self, labels: Labels) -> Labels:
        """Return the unit of each label."""
        return self.roots[labels]

    def stays(self, labels: Labels) -> Bools:
        """Tell for each label whether its channel stays."""
        found: Bools = self.kept[self.roots[labels]]
        return found

    def reads(self, layer: Layer) -> Bools:
        """Tell for each input channel of a layer whether a filter that stays has weights on it."""
        return self._read_by(layer, self.stays(layer.out_labels))

    def _read_by(self, layer: Layer, rows: Bools) -> Bools:
        """Tell for each input channel of a layer whether one of these filters, bool [filters], has weights on it."""
        filters = torch.from_numpy(rows)
        groups = layer.groups
        if groups == 1:
            return layer.used[filters].any(dim=0).numpy()
        used = layer.used.view(groups, len(layer.used) // groups, -1) & filters.view(groups, -1, 1)
        found: Bools = used.any(dim=1).flatten().numpy()
        return found

    def _silent_units(self) -> set[int]:
        """Return the units in which no filter has weights."""
        speaking: set[int] = set()
        for layer in self.flow.layers.values():
            speaking |= set(self.units(layer.out_labels[~layer.masked.numpy()]).tolist())
        return set(range(len(self.kept))) - speaking

    def _keep(self, units: Iterable[int], reason: str) -> None:
        for unit in units:
            if not self.kept[unit]:
                self.kept[unit] = True
                self.reasons[unit] = reason

    def _add(self, unit: int, reason: str) -> None:
        self._keep([unit], reason)
        if unit not in self._silent:  # filters without weights need nothing
            self._spread()

    def _spread(self) -> None:
        """Keep what is read by what stays and varies, until nothing more is needed.

        A layer is looked at again only when more of its filters stay, and then for those alone: a spread for every
        unit that equal parts or rounding add would otherwise visit all layers (140 CPU seconds for ResNeXt-50).
        """
        before = -1
        while before != (before := int(self.kept.sum())):
            for layer in reversed(list(self.flow.layers.values())):
                if len(layer.in_labels):
                    rows = self.stays(layer.out_labels)
                    fresh = rows & ~self._seen.get(layer.name, np.zeros(len(rows), dtype=bool))
                    if fresh.any():
                        self._seen[layer.name] = rows
                        needed = self._read_by(layer, fresh) & layer.in_constants.isnan().numpy()
                        self._keep(self.units(layer.in_labels[needed]).tolist(), f"{layer.name} reads it")

    def _candidate(self, labels: Labels) -> int:
        """Return a unit among `labels` that does not stay: one without weights if there is any."""
        free: list[int] = self.units(labels[~self.stays(labels)]).tolist()
        return next((unit for unit in free if unit in self._silent), free[0])

    def _one_at_least(self) -> None:
        for layer in self.flow.layers.values():
            for labels in (layer.out_labels, layer.in_labels):
                if len(labels) and not self.stays(labels).any():
                    self._add(self._candidate(labels), f"{layer.name} keeps one channel at least")

    def _equal_parts(self) -> None:
        for equal in self.flow.equal:
            parts = self._parts_that_stay(equal)
            for side in parts:
                while len(set(counts := [int(self.stays(part).sum()) for part in side])) > 1:
                    narrowest = side[int(np.argmin(counts))]
                    self._add(self._candidate(narrowest), equal.reason)

    def _parts_that_stay(self, equal: Equal) -> list[list[Labels]]:
        """Return the lists of parts to make equally wide, with one channel at least in each part."""
        if equal.other_side is None:
            return [equal.parts]
        pairs = list(zip(equal.parts, equal.other_side, strict=True))
        pairs = [pair for pair in pairs if any(self.stays(part).any() for part in pair)]
        for pair in pairs:
            for part in pair:
                if not self.stays(part).any():
                    self._add(self._candidate(part), equal.reason)
        return [[read for read, _ in pairs], [written for _, written in pairs]]

    def _carry(self) -> None:
        """Keep a carrier in every group of channels from which a padding layer loses constants other than zero."""
        for layer in self.flow.layers.values():
            if not layer.pads or not len(layer.in_labels):
                continue
            constants = layer.in_constants.nan_to_num(0.0).abs().numpy()
            lost = self.reads(layer) & ~self.stays(layer.in_labels) & (constants > 0)
            width = len(layer.in_labels) // layer.groups
            for first in range(0, len(constants), width):
                place = slice(first, first + width)
                if lost[place].any():
                    self._carry_group(layer, place, constants[place], lost[place])

    def _carry_group(self, layer: Layer, place: slice, constants: npt.NDArray[np.float64], lost: Bools) -> None:
        labels = layer.in_labels[place]
        needed = _LEAST_SHARE * constants[lost].max()
        able = self.stays(labels) & (constants >= needed)
        if not able.any():
            best = int(np.argmax(np.where(lost, constants, 0)))
            self._add(int(self.roots[labels[best]]), f"it carries the constants of removed channels into {layer.name}")
            able = self.stays(labels) & (constants >= needed)
        for unit in self.units(labels[np.where(able, constants, 0) == constants[able].max()]).tolist()[:1]:
            names = self.carriers.setdefault(unit, [])
            if layer.name not in names:
                names.append(layer.name)

    def _round(self, multiple_of: int) -> None:
        for layer in self.flow.layers.values() if multiple_of > 1 else ():
            while (count := int(self.stays(layer.out_labels).sum())) < len(layer.out_labels) and count % multiple_of:
                self._add(
                    self._candidate(layer.out_labels), f"{layer.name} is rounded up to a multiple of {multiple_of}"
                )
