"""The steps of a plan, and those that any node may need: halos, copies into other layouts, phases of a stride."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prunekit.engine.activations import Activation
from prunekit.engine.arena import Buffer, View
from prunekit.engine.filters import ConvChoice
from prunekit.engine.geometry import window_on
from prunekit.engine.graph import Node
from prunekit.engine.lanes import LaneLayout, Phases, Picks, PlanarLayout
from prunekit.engine.places import Places
from prunekit.engine.step_words import bits, number_of
from prunekit.errors import InputError

_IN_ARENA = -1  # csrc/cpu/plan.h

#: A step's words by name: the fields of its struct in csrc/cpu/plan.h.
Words = dict[str, int]


@dataclass
class StepRecord:
    """A step before its places are known: `words` gives them afterwards."""

    kind: str
    node: Node | None
    words: Callable[[], Words]
    reads: list[Buffer]
    writes: list[Buffer]


class StepList:
    """Steps over the buffers of some places, in the order in which they run."""

    def __init__(self, places: Places, outputs: Sequence[str], choices: Mapping[str, ConvChoice]) -> None:
        self.places, self.outputs = places, list(outputs)
        self.threads = torch.get_num_threads()
        self.given_choices, self.choices = choices, dict[str, ConvChoice]()
        self.steps: list[StepRecord] = []

    def _add(
        self, kind: str, node: Node | None, reads: Sequence[Buffer], writes: Sequence[Buffer],
        words: Callable[[], Words],
    ) -> None:  # fmt: skip
        self.steps.append(StepRecord(kind, node, words, list(reads), list(writes)))

    def _halo(self, view: View) -> None:
        buffer = view.buffer
        if buffer.front or buffer.back:
            self._add(
                "halo", None, [buffer], [buffer],
                lambda: {
                    **at("y", view), "channels": view.channels, "vectors": buffer.layout.vectors,
                    "front": buffer.front, "back": buffer.back, "fill": view.fill,
                },
            )  # fmt: skip

    def _remap(
        self, node: Node | None, name: str, target: View | int, picks: Picks, *, source: int | None = None,
        fill: int = 0, back: int = 0,
    ) -> None:  # fmt: skip
        """Make a view, or an output by its number, of value `name`'s pixels, or of input `source`'s.

        Each of a channel's planes has `back` vectors more than the layout, with the next chunk's pixels; where there is
        no pixel, `fill` are the bits of an element.
        """
        if source is None and name not in self.places.views:
            source = self.places.input_names.index(name)
        channels, (height, width) = self.places.planes_of(name), self.places.sizes[name][1:]
        read = None if source is not None else self.places.views[name]
        x = PlanarLayout(height, width) if read is None else read.buffer.layout
        rows, columns = (
            self.places.table_of((key, table.tobytes()), table)
            for key, table in (("r", picks.rows), ("c", picks.columns))
        )
        planes, num_rows = picks.rows.shape

        def words() -> Words:
            if source is None and read is not None:
                place = {"input": _IN_ARENA, **at("x", read)}
            else:
                place = {"input": source or 0, "x": 0, "x_channel": height * width}
            if isinstance(target, View):
                y = target.buffer.layout
                written = {"output": _IN_ARENA, **at("y", target), "y_vectors": y.vectors, "y_pitch": y.pitch}
                length, plane = y.vectors * self.places.lanes + back, (y.vectors + back) * self.places.lanes
            else:
                length = plane = num_rows * picks.columns.shape[1]
                written = {"output": target, "y": 0, "y_channel": length, "y_vectors": 0}
                written["y_pitch"] = picks.columns.shape[1]
            return {
                **place, "x_vectors": x.vectors, "x_pitch": x.pitch,
                **written, "y_back": back if isinstance(target, View) else 0,
                "channels": channels, "planes": planes, "plane": plane, "num_rows": num_rows, "length": length,
                "rows": rows, "columns": columns, "fill": fill,
            }  # fmt: skip

        reads, writes = [read.buffer] if read else [], [target.buffer] if isinstance(target, View) else []
        self._add("remap", node, reads, writes, words)

    def _unpack(self, name: str) -> None:
        """Write a value to the outputs that it is, at once: it is still in the caches, and its place is soon free."""
        for output in (i for i, other in enumerate(self.outputs) if other == name):
            _, height, width = self.places.sizes[name]
            if name in self.places.input_names and name not in self.places.views:
                raise InputError(f"value {name} passes through unchanged.")
            self._remap(None, name, output, Picks.within(np.arange(height), np.arange(width), height, width))

    def _phases(self, node: Node, fill: int) -> tuple[Buffer, Phases]:
        """Lay the input out so that the node's window has stride 1, padded with elements of bits `fill`."""
        name = node.inputs[0]
        channels, (height, width) = self.places.planes_of(name), self.places.sizes[name][1:]
        phases = Phases(window_on(node, self.places.graph, self.places.sizes[name]), self.places.layout_of(node.name))
        buffer = self.places.new_buffer(phases.output, channels, extra=len(phases.used) * phases.plane)
        picks = phases.picks(height, width)
        self._remap(node, name, View(buffer, 0, channels), picks, fill=fill, back=phases.back)
        return buffer, phases


def all_pixels(layout: LaneLayout) -> Picks:
    """Pick a whole image, in order."""
    return Picks.within(layout.rows(), np.arange(layout.pitch), layout.height, layout.width)


def at(name: str, view: View) -> Words:
    """Return where a view is: its place, and the elements from channel to channel."""
    return {name: view.at(), f"{name}_channel": view.buffer.channel}


def epilogue(name: str, activation: Activation) -> Words:
    """Return the words of an activation."""
    number = number_of("LaneActivation", activation.kind)
    return {f"{name}.activation": number, f"{name}.parameter": bits(activation.negative_slope)}
