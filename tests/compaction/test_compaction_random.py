"""Random nets with random filter masks: exact at two sizes, and nothing kept without a reason that is true."""

from __future__ import annotations

import copy
import os
import random
import re
from typing import Any

import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.compaction import Certificate, compact
from tests.support.compaction_nets import Case, masked, random_case

#: PRUNEKIT_NETS=1000 tries more.
NUM_NETS = int(os.environ.get("PRUNEKIT_NETS", "40"))
SIZES = ((24, 24), (31, 26))


@settings(max_examples=NUM_NETS, deadline=None, suppress_health_check=list(HealthCheck))
@given(draw=st.randoms(use_true_random=False))
def test_random_nets_come_out_exact_and_as_small_as_they_can_be(draw: random.Random) -> None:
    case = random_case(draw)
    note(f"{case.net}, wired {case.net.wiring}, outputs {case.net.outputs}")
    result = compact(case.net, case.example, case.masks, multiple_of=1, latency_runs=0)
    expected = masked(copy.deepcopy(case.net), case.masks)
    check_exact(expected, result.model, case)
    check_reasons(expected, result.model, result.certificate)


@torch.no_grad()
def check_exact(expected: nn.Module, actual: nn.Module, case: Case) -> None:
    runs = 0
    for size in SIZES:
        x = torch.randn(2, case.example.shape[1], *size, dtype=torch.float64)
        for a, b in zip(expected(x), actual(x), strict=True):
            assert float((a - b).abs().max()) <= 1e-10 * float(a.abs().max()) + 1e-300
        runs += 1
    assert runs == len(SIZES)


def check_reasons(expected: nn.Module, actual: nn.Module, certificate: Certificate) -> None:
    """A masked filter is gone, or its reason holds against the net itself."""
    for group in certificate.groups:
        stays = {name: len(weight_of(actual, name)) for name in group.layers}
        live = {name: int(weight_of(expected, name).flatten(1).any(dim=1).sum()) for name in group.layers}
        assert sum(stays.values()) <= sum(live.values()) + sum(group.reasons.values()), group
        filters_a_unit = sum(len(weight_of(expected, name)) for name in group.layers) // group.channels
        for reason, count in group.reasons.items():
            assert is_true(reason, count, filters_a_unit, expected, group.layers), reason


def weight_of(net: nn.Module, name: str) -> Tensor:
    weight = net.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def is_true(reason: str, count: int, filters_a_unit: int, net: nn.Module, layers: tuple[str, ...]) -> bool:
    """Check a reason for `count` filters against the net's wiring, as far as the reason's words go."""
    modules: dict[str, Any] = dict(net.named_modules())
    if found := re.fullmatch(r"it carries the constants of removed channels into (\S+)", reason):
        reader = modules[found[1]]
        return isinstance(reader, nn.Conv2d) and any(reader.padding) and count <= reader.groups * filters_a_unit
    if found := re.fullmatch(r"it is tied to a live channel of (\S+)", reason):
        return found[1] in layers and (len(layers) > 1 or modules[found[1]].groups > 1)
    if found := re.fullmatch(r"the groups of (\S+) stay equally wide", reason):
        return bool(modules[found[1]].groups > 1)
    if found := re.fullmatch(r"(\S+) keeps one channel at least", reason):
        return found[1] in modules
    if found := re.fullmatch(r"(\S+) reads it", reason):
        reader = modules[found[1]]
        return isinstance(reader, nn.Conv2d) and reader.groups > 1
    varies = r"(avg_pool2d of \S+ makes its constant vary|add joins its constant to a live channel)"
    return reason == "it is an output of the model" or re.fullmatch(varies, reason) is not None
