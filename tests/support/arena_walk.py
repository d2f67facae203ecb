"""A segment's steps, one at a time, over an arena of the test's own: what a step may touch, and what it did touch.

Inside the product the arena is one allocation, and a step that leaves its planes writes into other planes unseen. Here
every step is a plan of its own. Before it runs, all that no live buffer holds is nan, so that reading it shows in the
outputs; after it, all that is not a plane of a buffer it writes must be as before. Under AddressSanitizer whatever is
not a plane of a buffer that the step reads or writes is poisoned, so that reading it ends the process too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunekit.engine.arena import Buffer
from prunekit.engine.filters import ConvChoice
from prunekit.engine.geometry import Size
from prunekit.engine.graph import Graph, Node
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.places import Places
from prunekit.engine.planning import _Planner
from prunekit.engine.program import _borders, _by_level, run_in_torch
from prunekit.engine.step_words import STEP_WORDS
from prunekit.engine.steps import StepRecord
from prunekit.ops import native

_CACHE_LINE = 64

Elements = npt.NDArray[np.float32]


def aligned_elements(count: int) -> Elements:
    """Allocate float32 on a cache line, full of nan."""
    memory = np.empty(4 * count + _CACHE_LINE, np.uint8)
    begin = -memory.ctypes.data % _CACHE_LINE
    elements = memory[begin : begin + 4 * count].view(np.float32)
    elements[:] = np.nan
    return elements


def planes(buffer: Buffer) -> npt.NDArray[np.bool_]:
    """Tell which of a buffer's elements belong to a plane or its halo, not to the gap that follows it."""
    is_plane = np.zeros((buffer.channels, buffer.channel), np.bool_)
    is_plane[:, : buffer.vectors * buffer.layout.lanes] = True
    return is_plane.reshape(-1)


class ArenaWalk:
    """The steps of native nodes from planar inputs to planar outputs."""

    def __init__(
        self,
        graph: Graph,
        nodes: Sequence[Node],
        inputs: Mapping[str, Size],
        outputs: Sequence[str],
        choices: Mapping[str, ConvChoice],
    ) -> None:
        self.planner = _Planner(Places(graph, nodes, inputs, outputs, None), outputs, choices)
        self.plan = self.planner.plan()
        self.inputs, self.outputs = list(inputs), list(outputs)
        self.sanitizer = _sanitizer()

    def check_places(self) -> None:
        """Assert that buffers which live at the same time do not overlap, and that all lie in the arena."""
        buffers = [b for b in self.planner.places.buffers if b.first_step >= 0]
        for i, a in enumerate(buffers):
            assert a.offset >= 0
            assert a.offset + a.elements <= self.plan.arena_elements
            for b in buffers[i + 1 :]:
                is_apart_in_time = a.last_step < b.first_step or b.last_step < a.first_step
                is_apart = a.offset + a.elements <= b.offset or b.offset + b.elements <= a.offset
                assert is_apart_in_time or is_apart, (a, b)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run one image [1, C, H, W] step by step; return the outputs."""
        self.check_places()
        images = [x.contiguous() for x in inputs]
        results = [torch.full((1, *size), torch.nan) for size in self.plan.output_sizes]
        tensors = np.array([w for t in (*images, *results) for w in (t.data_ptr(), t[0].numel())], np.int64).tobytes()
        arena = aligned_elements(self.plan.arena_elements)
        for i, step in enumerate(self.planner.steps):
            self._kill(arena, i)
            self._run_step(arena, i, step, tensors)
        return results

    def _kill(self, arena: Elements, i: int) -> None:
        """Make nan of what no buffer that step i or a later one reads holds."""
        is_alive = np.zeros(len(arena), np.bool_)
        for buffer in self.planner.places.buffers:
            if buffer.first_step < i <= buffer.last_step:
                is_alive[buffer.offset : buffer.offset + buffer.elements] |= planes(buffer)
        arena[~is_alive] = np.nan

    def _run_step(self, arena: Elements, i: int, step: StepRecord, tensors: bytes) -> None:
        words = self.plan.words[i * STEP_WORDS * 8 : (i + 1) * STEP_WORDS * 8]
        plan = native.make_plan(words, len(arena), len(self.inputs), len(self.outputs))
        before = arena.copy()
        with _poisoned(self.sanitizer, arena, [*step.reads, *step.writes]):
            native.run_plan(plan, tensors, 1, arena=arena.ctypes.data)
        is_writable = np.zeros(len(arena), np.bool_)
        for buffer in step.writes:
            is_writable[buffer.offset : buffer.offset + buffer.elements] |= planes(buffer)
        is_changed = arena.view(np.int32) != before.view(np.int32)
        beyond = np.flatnonzero(is_changed & ~is_writable)
        assert not len(beyond), f"step {i} ({self.plan.kinds[i]}, {self.plan.labels[i]}) wrote element {beyond[0]}"


@contextmanager
def _poisoned(sanitizer: ctypes.CDLL | None, arena: Elements, buffers: Sequence[Buffer]) -> Iterator[None]:
    """Poison the arena for AddressSanitizer, but for the planes of `buffers`; lift it all afterwards."""

    def mark(verb: str, first: int, count: int) -> None:
        if sanitizer is not None:
            address, size = ctypes.c_void_p(arena.ctypes.data + 4 * first), ctypes.c_size_t(4 * count)
            getattr(sanitizer, f"__asan_{verb}_memory_region")(address, size)

    mark("poison", 0, len(arena))
    for buffer in buffers:
        is_plane = np.concatenate([[False], planes(buffer), [False]])
        for begin, end in np.flatnonzero(np.diff(is_plane)).reshape(-1, 2).tolist():
            mark("unpoison", buffer.offset + begin, end - begin)
    try:
        yield
    finally:
        mark("unpoison", 0, len(arena))


def walk(fast: AcceleratedModel, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Run one image through a model, the native parts step by step; return every value that leaves a part."""
    graph, program = fast.graph, fast.program
    values = dict(zip(graph.inputs, inputs, strict=True))
    for level, nodes in enumerate(_by_level(graph)):
        if level % 2:
            for node in nodes:
                values[node.name] = run_in_torch(node, values, program._graph.constants)
        elif nodes:
            names, outputs = _borders(graph, nodes)
            sizes: dict[str, Size] = {name: size_of(values[name]) for name in names}
            results = ArenaWalk(graph, nodes, sizes, outputs, fast.choices).run([values[name] for name in names])
            values.update(zip(outputs, results, strict=True))
    return values


def size_of(x: Tensor) -> Size:
    """Return [C, H, W]."""
    return int(x.shape[1]), int(x.shape[2]), int(x.shape[3])


def _sanitizer() -> ctypes.CDLL | None:
    """Return AddressSanitizer's functions where this process runs under it."""
    process = ctypes.CDLL(None)
    return process if hasattr(process, "__asan_poison_memory_region") else None
