"""Pruning of layers whose weight is computed: masks hold for the weight that is used, or one sentence says why not."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.nn import MaskedConv2d
from prunekit.nn.computed_weights import effective
from prunekit.prune import (
    Comparison,
    FrozenMasks,
    MaskRule,
    StraightThrough,
    apply_masks,
    channel_groups,
    count_costs,
    deeplift_scores,
    initial_scores,
    prunable_layers,
    score_model,
    sparsity,
    taylor_scores,
)
from tests.support.computed_weights import KINDS, MASKABLE, make_net, plain_copy
from tests.support.oracles import TOLERANCE, relative_difference
from tests.support.pruning_nets import groups_of
from tests.support.untouched import untouched

X = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(9))
Masks = dict[str, Tensor]

searching = settings(deadline=None, max_examples=int(os.environ.get("PRUNEKIT_EXAMPLES", "100")))
kinds = st.sampled_from(list(KINDS))
seeds = st.integers(0, 50)


def random_masks(net: nn.Module, seed: int, density: float) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(conv.out_channels, conv.in_channels, *conv.kernel_size, generator=generator) < density
        for name, conv in prunable_layers(net).items()
    }


def weights_used(net: nn.Module) -> dict[str, Tensor]:
    """Return what each convolution convolves with in eval mode, seen by calling it."""
    found: dict[str, Tensor] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(conv: nn.Module, args: tuple[Tensor]) -> None:
            found[name] = conv.weight.detach().clone()  # type: ignore[operator]

        return hook

    hooks = [conv.register_forward_pre_hook(look(name)) for name, conv in prunable_layers(net).items()]
    with torch.no_grad():
        net.eval()(X)
    for handle in hooks:
        handle.remove()
    return found


def train_a_little(net: nn.Module, frozen: FrozenMasks | None) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05, weight_decay=0.1)
    if frozen is not None:
        frozen.guard(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        net.train()(X).square().mean().backward()
        optimizer.step()


def mask_by_apply(net: nn.Module, masks: Masks) -> None:
    apply_masks(net, masks)


def mask_by_training(net: nn.Module, masks: Masks) -> None:
    with FrozenMasks(net, masks) as frozen:
        train_a_little(net, frozen)


def mask_by_scores(net: nn.Module, masks: Masks) -> None:
    """Optimize scores that begin at the masks, with a ratio that leaves their order to be learnt."""
    generator = torch.Generator().manual_seed(4)
    scores = {name: mask + 0.01 * torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}
    with StraightThrough(net, scores, MaskRule(50)) as pruning:
        optimizer = torch.optim.SGD(pruning.parameters(), lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            net.train()(X).square().mean().backward()
            optimizer.step()
        used, now = weights_used(net), pruning.masks()
        for name, mask in now.items():
            assert not used[name][~mask].any()
        masks.clear()
        masks.update(pruning.finish())


MASKING = {"apply_masks": mask_by_apply, "FrozenMasks": mask_by_training, "StraightThrough": mask_by_scores}


@searching
@given(kind=kinds, seed=seeds, function=st.sampled_from(list(MASKING)), training=st.booleans(), density=st.floats(0, 1))
def test_masks_hold_for_the_weight_that_is_used_or_nothing_has_happened(
    kind: str, seed: int, function: str, training: bool, density: float
) -> None:
    net = make_net(kind, seed, training)
    masks = random_masks(net, seed, density)
    zeros = {name: weight == 0 for name, weight in weights_used(make_net(kind, seed, training)).items()}
    if kind not in MASKABLE:
        with untouched(net, masks), pytest.raises(InputError, match="layer '0'"):
            MASKING[function](net, masks)
        return
    MASKING[function](net, masks)
    for name, weight in weights_used(net).items():
        is_zero = ~masks[name] | zeros[name]
        assert not weight[is_zero].any()
        if function == "apply_masks":
            assert weight[~is_zero].all()
            assert torch.equal(is_zero, effective(net.get_submodule(name)) == 0)
    total = sum(int(weight.count_nonzero()) for weight in weights_used(net).values())
    assert sparsity(net) == pytest.approx(1 - total / sum(mask.numel() for mask in masks.values()))


@pytest.mark.parametrize("kind", MASKABLE)
def test_nested_masks_compose_and_reading_needs_no_forward_pass(kind: str) -> None:
    net = make_net(kind, 3, training=True)
    first, second = random_masks(net, 1, 0.7), random_masks(net, 2, 0.6)
    apply_masks(net, first)
    apply_masks(net, second)
    for name, conv in prunable_layers(net).items():
        assert not conv.weight[~(first[name] & second[name])].any()  # the attribute follows at once


SCORING: dict[str, Callable[[nn.Module], dict[str, Tensor]]] = {
    "magnitude": lambda net: score_model(net, "magnitude"),
    "scaled": lambda net: score_model(net, "scaled"),
    "random": lambda net: score_model(net, "random", seed=1),
    "initial": lambda net: initial_scores(net, score_model(net, "random", seed=1)),
    "taylor": lambda net: taylor_scores(net, [(X, lambda y: y.square().mean()), (X / 2, lambda y: y.mean((1, 2, 3)))]),
    "rescale": lambda net: deeplift_scores(net, [Comparison(X, torch.zeros_like(X), lambda y: y.mean((1, 2, 3)))]),
    "reveal_cancel": lambda net: deeplift_scores(
        net, [Comparison(X, torch.zeros_like(X), lambda y: y.mean((1, 2, 3)))], "reveal_cancel"
    ),
    "masks of a rule": lambda net: {
        name: mask.float() for name, mask in MaskRule(60)(score_model(net, "magnitude")).items()
    },
    "from_dense": lambda net: {
        name: MaskedConv2d.from_dense(conv).weight.detach() for name, conv in prunable_layers(net).items()
    },
    "to_dense": lambda net: {
        name: MaskedConv2d.from_dense(conv).to_dense().weight.detach() for name, conv in prunable_layers(net).items()
    },
    "costs": lambda net: {row.name: torch.tensor(float(row.macs)) for row in count_costs(net, X).layers},
    "sparsity": lambda net: {"": torch.tensor(sparsity(net))},
}


@searching
@given(kind=kinds, seed=seeds, function=st.sampled_from(list(SCORING)), training=st.booleans())
def test_scores_are_those_of_the_same_weights_stored_and_the_net_is_as_it_was(
    kind: str, seed: int, function: str, training: bool
) -> None:
    net = make_net(kind, seed, training)
    for number, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(number % 3 > 0)
    with untouched(net, X):
        found = SCORING[function](net)
    expected = SCORING[function](plain_copy(kind, seed))
    assert found.keys() == expected.keys()
    for name, score in expected.items():
        assert not found[name].requires_grad
        assert relative_difference(score, found[name]) <= TOLERANCE[torch.float32]
    if function in ("taylor", "rescale", "reveal_cancel", "magnitude"):
        used = weights_used(net)
        for name, weight in used.items():
            assert bool(found[name].any())
            assert not found[name][weight == 0].any()


@searching
@given(kind=kinds, seed=seeds, stale=st.booleans())
def test_a_change_since_the_last_forward_pass_is_seen(kind: str, seed: int, stale: bool) -> None:
    net = make_net(kind, seed, training=False)
    if stale:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(torch.linspace(0.5, 1.5, parameter.numel()).view(parameter.shape))
    found, used = score_model(net, "magnitude"), weights_used(net)
    for name, weight in used.items():
        assert relative_difference(weight, found[name]) <= TOLERANCE[torch.float32]


@searching
@given(kind=kinds, training=st.booleans())
def test_channel_groups_do_not_depend_on_how_weights_come_about(kind: str, training: bool) -> None:
    net = make_net(kind, 1, training)
    with untouched(net):
        groups = channel_groups(net, X)
    expected = groups_of(plain_copy(kind, 1))
    assert groups.units.keys() == expected.units.keys()
    assert all(torch.equal(groups.units[name], expected.units[name]) for name in groups.units)
    rule = MaskRule(50, "filter", groups=groups)
    masks = rule(score_model(net, "magnitude"))
    if kind not in MASKABLE:
        with untouched(net, masks), pytest.raises(InputError, match="layer '0'"):
            apply_masks(net, masks, groups)
        return
    apply_masks(net, masks, groups)
    with torch.no_grad():
        dropped = ~masks["0"].flatten(1).any(1)
        assert bool(dropped.any())
        assert not net.eval()[:2](X)[:, dropped].any()  # bias, shift and weights alike


def test_taylor_scores_of_shared_weights_and_of_a_frozen_pruned_net() -> None:
    net = make_net("pruned by torch", 5, training=True).requires_grad_(False)
    with untouched(net):
        scores = taylor_scores(net, [(X, lambda y: y.square().mean())])
    assert all(bool(score.any()) for score in scores.values())


def test_a_weight_computed_in_a_way_that_is_not_known_is_refused_before_anything_changes() -> None:
    class Doubled(nn.Conv2d):
        @property
        def weight(self) -> Tensor:  # type: ignore[override]
            return self.get_parameter("halved") * 2

    conv = nn.Conv2d(3, 4, 1)
    conv.register_parameter("halved", conv._parameters.pop("weight"))
    conv.__class__ = Doubled
    net = nn.Sequential(nn.Conv2d(3, 3, 1), conv)
    masks = random_masks(net, 0, 0.5)
    for call in (
        lambda: apply_masks(net, masks),
        lambda: FrozenMasks(net, masks),
        lambda: StraightThrough(net, {name: mask.float() for name, mask in masks.items()}, MaskRule(50)),
        lambda: taylor_scores(net, [(X, lambda y: y.mean())]),
    ):
        with untouched(net), pytest.raises(InputError, match="layer '1' to have a plain weight"):
            call()


def test_groups_of_another_model_are_refused_before_anything_changes() -> None:
    net = make_net("plain", 1, training=True)
    other = groups_of(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)))
    masks, scores = random_masks(net, 0, 0.5), score_model(net, "magnitude")
    rule = MaskRule(50, "filter", groups=other)
    for call in (
        lambda: apply_masks(net, masks, other),
        lambda: FrozenMasks(net, masks, other),
        lambda: StraightThrough(net, scores, rule),
    ):
        with untouched(net, masks), pytest.raises(InputError):
            call()


@pytest.mark.parametrize("kind", MASKABLE)
def test_leaving_straight_through_puts_everything_back(kind: str) -> None:
    net = make_net(kind, 2, training=True)
    scores = score_model(net, "scaled")
    with untouched(net, scores):
        StraightThrough(net, scores, MaskRule(50)).detach()
    assert [name for name, _ in net.named_parameters()] == [
        name for name, _ in make_net(kind, 2, training=True).named_parameters()
    ]
