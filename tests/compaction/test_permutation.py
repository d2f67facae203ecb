"""Channels in another order: the same answers, more kept in blocks, and nothing moved that has to stay."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from prunekit.compaction import permute_channels
from prunekit.errors import InputError
from prunekit.prune import MaskRule, conv_groups, score_model
from tests.support.compaction_nets import Shuffle, random_case
from tests.support.exact_compaction import conv, net_of
from tests.support.untouched import untouched

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(draw=st.randoms(use_true_random=False), structure=st.sampled_from(["block1x4", "block4x1", "block16x1"]))
def test_random_nets_answer_the_same_and_keep_no_less(draw: random.Random, structure: str) -> None:
    case = random_case(draw)
    note(f"{case.net}, wired {case.net.wiring}, outputs {case.net.outputs}")
    with untouched(case.net):
        found = permute_channels(case.net, case.example, structure, 50)
    check_same(case.net, found.model, torch.randn(2, case.example.shape[1], 31, 26, dtype=torch.float64))
    check_kept(case.net, found.model, structure, 50, found.kept_before, found.kept_after)


def check_same(net: nn.Module, permuted: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        pairs = [*zip(_all(net(x)), _all(permuted(x)), strict=True)]
    assert pairs
    for a, b in pairs:
        assert float((a - b).abs().max()) <= 1e-9 * float(a.abs().max()) + 1e-300


def _all(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def check_kept(net: nn.Module, permuted: nn.Module, structure: str, ratio: float, before: float, after: float) -> None:
    """The shares are those of masks that are made anew, and the second is no smaller."""
    for model, share in ((net, before), (permuted, after)):
        scores = {name: score.abs().double() for name, score in score_model(model, "scaled").items()}
        masks = MaskRule(ratio, structure, conv_groups=conv_groups(model))(scores)
        total = sum(float(score.sum()) for score in scores.values())
        kept = sum(float((scores[name] * mask).sum()) for name, mask in masks.items())
        assert share == pytest.approx(kept / total, rel=1e-5)
    assert after >= before - 1e-6


def planted(layer: nn.Conv2d) -> list[list[int]]:
    """Let every four of a layer's channels, in an order of their own, have weights in the same two filters."""
    channels = torch.randperm(layer.in_channels, generator=torch.Generator().manual_seed(0)).view(-1, 4)
    with torch.no_grad():
        layer.weight.mul_(1e-3)
        for number, found in enumerate(channels):
            for filters in (number, (number + 3) % layer.out_channels):
                layer.weight[filters, found] += 1.0
    return [found.tolist() for found in channels]


def quads(net: Any, permuted: Any) -> set[frozenset[int]]:
    """Return which filters of layer `a` lie in fours now."""
    places = [int((net.a.weight == row).flatten(1).all(dim=1).nonzero()) for row in permuted.a.weight]
    return {frozenset(places[i : i + 4]) for i in range(0, len(places), 4)}


def test_channels_with_weights_at_the_same_places_come_to_lie_side_by_side() -> None:
    net = net_of(lambda n, x: n.b(torch.relu(n.norm(n.a(x)))), a=conv(3, 32), norm=nn.BatchNorm2d(32), b=conv(32, 8, 1))
    together = planted(net.b)
    found = permute_channels(net, X.double(), "block1x4", 75)
    assert quads(net, found.model) == {frozenset(channels) for channels in together}
    assert found.moved > 16
    assert found.kept_after > found.kept_before + 0.04
    check_same(net, found.model, X.double())


@pytest.mark.parametrize("structure", ["block1x4", "block4x1"])
def test_whatever_reads_or_shares_channels_moves_with_them(structure: str) -> None:
    def wiring(n: Any, x: Tensor) -> Any:
        x = torch.relu(n.stem_norm(n.stem(x)))
        y = n.wise_norm(n.wise(functional.relu6(n.expand(x))))
        x = x + n.shrink(y)
        both = torch.cat([x, functional.silu(n.side(x)), x], 1)
        pooled = functional.adaptive_avg_pool2d(n.last(both), 2).flatten(1)
        return n.linear(pooled)

    net = net_of(
        wiring, stem=conv(3, 16), stem_norm=nn.BatchNorm2d(16), expand=conv(16, 24, 1), wise=conv(24, 24, groups=24),
        wise_norm=nn.BatchNorm2d(24), shrink=conv(24, 16, 1), side=conv(16, 12), last=conv(44, 20),
        linear=nn.Linear(80, 3),
    )  # fmt: skip
    for layer in (net.expand, net.side):  # both read the stem's channels, in the same fours
        planted(layer)
    net.last.weight.data[0, 0, 0, 0] = 1e3  # beside which its others hardly count
    found = permute_channels(net, X.double(), structure, 60)
    moved = [name for name, p in found.model.named_parameters() if not torch.equal(p, net.get_parameter(name))]
    assert {f"{name}.weight" for name in ("stem", "stem_norm", "expand", "wise", "shrink", "side")} <= {*moved}
    assert "linear.bias" not in moved
    assert found.kept_after > found.kept_before
    check_same(net, found.model, torch.randn(2, 3, 19, 15, dtype=torch.float64))


def test_channels_that_are_told_apart_by_place_stay() -> None:
    def wiring(n: Any, x: Tensor) -> Any:
        first, second = torch.relu(n.a(x)).chunk(2, dim=1)  # halves
        return n.out(first) + n.other(second), n.b(x)  # b: outputs

    net = net_of(wiring, a=conv(3, 16), out=conv(8, 4), other=conv(8, 4), b=conv(3, 8))
    found = permute_channels(net, X.double(), "block1x4", 50)
    assert found.moved == 0
    assert found.kept_after == found.kept_before
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, found.model.get_parameter(name))


def test_shuffled_and_grouped_channels_answer_the_same() -> None:
    net = net_of(
        lambda n, x: n.c(n.shuffle(torch.relu(n.b(torch.relu(n.a(x)))))),
        a=conv(3, 16), b=conv(16, 16, groups=4), shuffle=Shuffle(4), c=conv(16, 4),
    )  # fmt: skip
    for structure in ("block1x4", "block4x1"):
        found = permute_channels(net, X.double(), structure, 50)
        check_same(net, found.model, X.double())


def test_scores_of_ones_own_decide() -> None:
    net = net_of(lambda n, x: n.b(torch.relu(n.a(x))), a=conv(3, 16), b=conv(16, 8, 1))
    marked = copy.deepcopy(net)
    together = planted(marked.b)
    scores = {name: marked.get_submodule(name).weight.detach() for name in ("a", "b")}
    found = permute_channels(net, X.double(), "block1x4", 75, scores)
    assert quads(net, found.model) == {frozenset(channels) for channels in together}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"structure": "unstructured"}, "Expected a structure of blocks, block1x4 or .*, got 'unstructured'"),
        ({"ratio": 100}, "Expected a pruning ratio of at least 0 and below 100 percent, got 100"),
        ({"scores": {"c": torch.ones(1)}}, "there is none called 'c'"),
        ({"scores": {"a": torch.ones(16, 3)}}, r"layer 'a' to have the weight's shape \(16, 3, 3, 3\), got \(16, 3\)"),
    ],
)
def test_what_does_not_fit_is_named(arguments: dict[str, Any], sentence: str) -> None:
    net = net_of(lambda n, x: n.b(torch.relu(n.a(x))), a=conv(3, 16), b=conv(16, 8, 1))
    with pytest.raises(InputError, match=sentence):
        permute_channels(net, X.double(), **arguments)
