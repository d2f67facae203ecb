"""Buffers of lane planes, and their places in one arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunekit.engine.lanes import CACHE_LINE_ELEMENTS, LaneLayout
from prunekit.errors import InputError

#: Of a plane with its halo or phases: the kernels count pixels of a plane in 32 bits.
MAX_PLANE_ELEMENTS = 2**31 - 1


@dataclass
class Buffer:
    """Planes of one layout in the arena; `front` and `back` vectors of halo around each."""

    layout: LaneLayout
    channels: int
    front: int = 0
    back: int = 0
    extra: int = 0  # vectors a plane instead of the layout's own, for phases
    first_step: int = -1
    last_step: int = -1
    offset: int = -1  # elements

    @property
    def vectors(self) -> int:
        """Vectors of a plane with its halo, or of its phases."""
        return self.extra or self.front + self.layout.vectors + self.back

    @property
    def channel(self) -> int:
        """Elements from plane to plane: an odd number of cache lines, so that planes spread over the cache's sets."""
        lines = -(-self.vectors * self.layout.lanes // CACHE_LINE_ELEMENTS)
        return (lines | 1) * CACHE_LINE_ELEMENTS

    @property
    def elements(self) -> int:
        """Size in the arena."""
        return self.channels * self.channel


@dataclass
class View:
    """Channels of a buffer, or quads of them; `fill` are the bits of an element that is no pixel."""

    buffer: Buffer
    first: int
    channels: int
    fill: int = 0

    def at(self, vector: int = 0) -> int:
        """Return where `vector` of the first plane lies in the arena."""
        buffer = self.buffer
        return buffer.offset + self.first * buffer.channel + (buffer.front + vector) * buffer.layout.lanes


def place(buffers: Sequence[Buffer], steps: Sequence[Sequence[Buffer]]) -> None:
    """Place the buffers; two may share a place when no step needs both. The largest choose first.

    Args:
        buffers: their offsets are set.
        steps: what each step reads and writes.

    Raises:
        InputError: a plane has 2^31 elements or more.
    """
    for i, used in enumerate(steps):
        for buffer in used:
            buffer.first_step = i if buffer.first_step < 0 else buffer.first_step
            buffer.last_step = i
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: -b.elements):
        if buffer.channel > MAX_PLANE_ELEMENTS:
            raise InputError(
                f"a plane of {buffer.layout.height}×{buffer.layout.width} pixels has 2^31 elements or more."
            )
        taken = sorted(
            (other.offset, other.offset + other.elements)
            for other in placed
            if other.first_step <= buffer.last_step and buffer.first_step <= other.last_step
        )
        at = 0
        for begin, end in taken:
            if at + buffer.elements <= begin:
                break
            at = max(at, end)
        buffer.offset = at
        placed.append(buffer)
