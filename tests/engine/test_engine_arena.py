"""What the engine's steps touch: their own planes and nothing else, and nothing that was left behind by others."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch.utils._pytree import tree_leaves

from prunekit.engine import arena, planning
from prunekit.engine.capture import CaptureError, capture
from prunekit.engine.filters import ConvChoice
from prunekit.engine.fusing import fuse
from prunekit.engine.graph import Node
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.places import Places
from prunekit.errors import InputError
from prunekit.ops.native import native_status
from tests.support.arena_walk import ArenaWalk, size_of, walk
from tests.support.conv_variants import (
    READINGS,
    conv_of_reading,
    every_cut,
    instruction_set,
    random_conv,
    random_cut,
    wide_offsets,
)
from tests.support.engine_nets import random_net
from tests.support.oracles import TOLERANCE, relative_difference

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]

#: PRUNEKIT_NETS=1000 walks through more of them.
NUM_NETS = int(os.environ.get("PRUNEKIT_NETS", "90")) // 6
SETS = native_status().supported_sets


def nets(first: int, count: int) -> Iterator[tuple[AcceleratedModel, tuple[torch.Tensor, ...]]]:
    """Yield random nets on the engine with one image each."""
    for seed in range(first, first + count):
        case = random_net(seed)
        try:
            graph = capture(case.net.eval(), [x.clone() for x in case.inputs])
        except CaptureError:
            continue
        fuse(graph)
        graph.compress()
        fast = AcceleratedModel(graph, {}, [list(x.shape) for x in case.inputs])
        if graph.is_size_free or all(len(x) == 1 for x in case.inputs):
            yield fast, case.inputs


def walk_conv(seed: int, cuts: int = 1) -> None:
    """Walk through a random convolution, cut at random, and compare."""
    conv = random_conv(seed)
    choices = [random_cut(conv, seed + i) for i in range(cuts)]
    names = [f"y{i}" for i in range(cuts)]
    graph, values = conv.graph(names), {name: x[:1] for name, x in conv.values().items()}
    sizes = {name: size_of(x) for name, x in values.items()}
    steps = ArenaWalk(graph, graph.nodes, sizes, names, dict(zip(names, choices, strict=True)))
    for choice, y in zip(choices, steps.run(list(values.values())), strict=True):
        assert relative_difference(conv.expected()[:1], y) <= TOLERANCE[torch.float32], (seed, choice)


def walk_every_cut(reading: str, weight_dtype: torch.dtype = torch.float32) -> None:
    """Walk through every number of rows and length of tile, and compare."""
    conv = conv_of_reading(reading, weight_dtype)
    choices = every_cut(conv, seed=1)
    names = [f"y{i}" for i in range(len(choices))]
    graph = conv.graph(names)
    with wide_offsets(reading == "32 bits"):
        assert conv.reading() == READINGS[reading]
        cuts = dict(zip(names, choices, strict=True))
        results = ArenaWalk(graph, graph.nodes, {"x": size_of(conv.x)}, names, cuts).run([conv.x])
    for choice, y in zip(choices, results, strict=True):
        assert relative_difference(conv.expected(), y) <= TOLERANCE[torch.float32], choice


def test_nets_read_and_write_their_own_planes() -> None:
    checked = 0
    for fast, inputs in nets(8000, NUM_NETS):
        values = walk(fast, inputs)
        expected = tree_leaves(fast(*inputs))
        for name, y in zip(fast.graph.outputs, expected, strict=True):
            assert torch.equal(values[name], y)
        checked += 1
    assert checked >= NUM_NETS // 4


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", SETS)
def test_every_cut_reads_and_writes_its_own_planes(name: str, reading: str) -> None:
    with instruction_set(name):
        walk_every_cut(reading)


@pytest.mark.parametrize("name", SETS)
def test_random_convolutions_read_and_write_their_own_planes(name: str) -> None:
    with instruction_set(name):
        for seed in range(NUM_NETS):
            walk_conv(seed)


def test_a_walk_sees_what_is_read_behind_a_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: one vector of halo too few, unseen by the planner."""
    reach = Places.reach

    def less(self: Places, node: Node) -> tuple[int, int]:
        front, back = reach(self, node)
        return front, back - 1

    monkeypatch.setattr(Places, "reach", less)
    monkeypatch.setattr(Places, "check_reach", lambda *_: None)
    with pytest.raises(AssertionError):
        walk_every_cut("16 bits")


@pytest.mark.parametrize("reading", READINGS)
def test_a_halo_that_is_too_small_is_refused(reading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "_assign_halos", lambda _: None)
    with pytest.raises(
        InputError, match=r"y0: expected a halo around vectors .* found one of \d+ vectors that is too small"
    ):
        conv_of_reading(reading).plan([ConvChoice(1, 1, 5)])


def test_buffers_are_placed_apart_while_they_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: all buffers at the arena's beginning."""

    def place(buffers: list[arena.Buffer], steps: list[list[arena.Buffer]]) -> None:
        arena.place(buffers, steps)
        for buffer in buffers:
            buffer.offset = 0

    monkeypatch.setattr(planning, "place", place)
    with pytest.raises(AssertionError):
        walk_conv(0)
