"""Which channels stay: against a reference that visits every layer again after every channel that is added."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.compaction import compact
from prunekit.compaction.keep_set import Choice
from prunekit.graph.calls import Call
from prunekit.graph.channels.channel_flow import ChannelFlow
from prunekit.graph.traced import trace
from tests.support.compaction_nets import masked, random_case

#: PRUNEKIT_NETS=1000 tries more.
NUM_NETS = int(os.environ.get("PRUNEKIT_NETS", "12"))


class SlowChoice(Choice):
    """Spreads over everything after every channel, filter by filter."""

    def _add(self, unit: int, reason: str) -> None:
        self._keep([unit], reason)
        self._spread()

    def _spread(self) -> None:
        while missing := needed(self.flow, self) - {unit for unit in range(len(self.kept)) if self.kept[unit]}:
            self._keep(missing, "it is read")


def needed(flow: ChannelFlow, choice: Choice) -> set[int]:
    """Return the units that a filter that stays has weights on, where they vary."""
    found: set[int] = set()
    for layer in flow.layers.values():
        written, read = len(layer.used) // layer.groups, layer.used.shape[1]
        for filter_, unit in enumerate(choice.units(layer.out_labels).tolist()):
            if choice.kept[unit] and len(layer.in_labels):
                for channel in range(read):
                    place = filter_ // written * read + channel
                    if layer.used[filter_, channel] and bool(layer.in_constants[place].isnan()):
                        found.add(int(choice.units(layer.in_labels[place : place + 1])[0]))
    return found


@settings(max_examples=NUM_NETS, deadline=None, suppress_health_check=list(HealthCheck))
@given(draw=st.randoms(use_true_random=False), multiple_of=st.sampled_from((1, 4)))
def test_the_units_that_stay_are_those_of_a_slow_fixpoint(draw: random.Random, multiple_of: int) -> None:
    case = random_case(draw)
    flow = ChannelFlow(trace(masked(case.net, case.masks), Call((case.example,)))).run()
    fast, slow = Choice(flow, multiple_of), SlowChoice(flow, multiple_of)
    assert fast.kept.tolist() == slow.kept.tolist()
    assert all(fast.kept[unit] for unit in needed(flow, fast))
    assert all(fast.kept[unit] for unit in flow.units.pinned())


@pytest.mark.parametrize("dead", [0, 3])
def test_it_does_not_matter_which_output_s_filter_is_masked(dead: int) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[0].weight[:8] = 0
        net[2].weight[8:] = 0
        net[4].weight[dead] = 0
    small: Any = compact(net, torch.randn(1, 3, 8, 8), latency_runs=0, multiple_of=1).model
    assert [len(small[index].weight) for index in (0, 2, 4)] == [8, 8, 4]


def test_channels_without_weights_are_added_without_a_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding adds 6 masked channels to each layer here; spreading for each took ResNeXt-50 minutes."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 1)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.Conv2d(16, 16, 1)]
    net = nn.Sequential(*layers, nn.Conv2d(16, 4, 1)).eval()
    with torch.no_grad():
        for conv in list(net)[:-1]:
            if isinstance(conv, nn.Conv2d):
                conv.weight[6:] = 0
    flow = ChannelFlow(trace(net, Call((torch.randn(1, 3, 8, 8),)))).run()
    spreads: list[Choice] = []
    spread: Callable[[Choice], None] = Choice._spread

    def counted(choice: Choice) -> None:
        spreads.append(choice)
        spread(choice)

    monkeypatch.setattr(Choice, "_spread", counted)
    choice = Choice(flow, 12)
    assert [int(choice.stays(layer.out_labels).sum()) for layer in flow.layers.values()] == [12, 12, 12, 12, 4]
    assert len(spreads) == 1
