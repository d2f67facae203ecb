"""Blocks of weights go as a whole, by their mean, inside their group, wherever a structure is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_kernels.condensed_filter import condense
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.prune import (
    STRUCTURES,
    FrozenMasks,
    MaskRule,
    StraightThrough,
    allocate,
    allocated,
    conv_groups,
    count_costs,
    prunable_layers,
    score_model,
)
from prunekit.prune.blocks import BLOCKS
from tests.support.block_oracle import BLOCK_STRUCTURES, block_numbers, goes_as_a_whole, means_of, slow_masks
from tests.support.pruning_nets import make_model

X = torch.zeros(1, 3, 6, 6)
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 18), st.integers(1, 9), st.integers(1, 2), st.integers(1, 3))


def layer_of(sizes: tuple[int, ...], seed: int) -> Tensor:
    """Return scores of [groups · filters, channels, R, S]: small integers, with exact sums and many ties."""
    groups, filters, *others = sizes
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, (groups * filters, *others), generator=generator).float()


@settings(deadline=None, max_examples=25)
@given(SIZES, SIZES, st.integers(0, 10**6), st.sampled_from(sorted(BLOCKS)), st.sampled_from(["layer", "global"]),
       st.integers(0, 99))  # fmt: skip
def test_masks_are_those_of_a_loop_over_weights(
    one: tuple[int, ...], two: tuple[int, ...], seed: int, structure: str, scope: str, ratio: int
) -> None:
    groups = {"one": one[0], "two": two[0]}
    scores = {"one": layer_of(one, seed), "two": layer_of(two, seed + 1)}
    masks = MaskRule(ratio, structure, scope, conv_groups=groups)(scores)
    expected = slow_masks(scores, structure, ratio, scope, groups)
    assert all(torch.equal(masks[layer], expected[layer]) for layer in scores)


@settings(deadline=None, max_examples=25)
@given(SIZES, st.integers(0, 10**6), st.sampled_from(sorted(BLOCKS)), st.booleans())
def test_means_are_those_of_a_loop_whatever_the_memory_format(
    sizes: tuple[int, ...], seed: int, structure: str, channels_last: bool
) -> None:
    x = layer_of(sizes, seed).double().exp()
    laid_out = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    means, numbers = BLOCKS[structure].means(laid_out, sizes[0]), block_numbers(tuple(x.shape), structure, sizes[0])
    expected = means_of(x, numbers)
    torch.testing.assert_close(means.flatten(), expected)
    torch.testing.assert_close(BLOCKS[structure].spread(means, x.shape, sizes[0]), expected[numbers])


def test_the_names_say_filters_by_input_channels() -> None:
    scores = torch.zeros(8, 8, 1, 1)
    scores[4:, :4] = 1.0
    scores[1, 4] = scores[6, 1] = 9.0
    one_by_four, four_by_one = (MaskRule(98, name)({"": scores})[""][:, :, 0, 0] for name in BLOCK_STRUCTURES[:2])
    assert one_by_four.nonzero().tolist() == [[6, c] for c in range(4)]  # of 16 blocks int(15.68) go
    assert four_by_one.nonzero().tolist() == [[k, 1] for k in range(4, 8)]


def test_blocks_of_groups_of_one_are_weights() -> None:
    model = make_model()
    scores = score_model(model, "magnitude")
    rules = {name: MaskRule(60, name, conv_groups=conv_groups(model)) for name in ("unstructured", *BLOCK_STRUCTURES)}
    depthwise = [rule(scores)["depthwise"] for rule in rules.values()]
    assert all(torch.equal(mask, depthwise[0]) for mask in depthwise)


def test_the_ratio_is_the_share_of_blocks_however_many_weights_they_have() -> None:
    scores = torch.tensor([2.0, 2.0, -2.0, 2.0, 3.0]).view(1, 5, 1, 1)
    masks = [MaskRule(50, "block1x4")({"": s})[""].flatten().tolist() for s in (scores, 1 / scores)]
    assert masks == [[False] * 4 + [True], [True] * 4 + [False]]  # four weights of five, and one


def test_groups_that_do_not_divide_the_filters_are_refused() -> None:
    with pytest.raises(InputError, match="multiple of 2 filters, the groups of layer 'a', got scores of 3"):
        MaskRule(50, "block4x1", conv_groups={"a": 2})({"a": torch.ones(3, 1, 1, 1)})


def grouped_net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(14)
    # A channel that masks make constant is normalized to its shift, which at 0 would be rounded to either side of ReLU.
    nn.init.normal_(norm.bias)
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(10, 14, 3, groups=2), norm, nn.ReLU(),
        nn.Conv2d(14, 18, 1),
    ).double()  # fmt: skip


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from(sorted(BLOCKS)), st.integers(0, 95))
def test_scores_get_the_gradient_of_a_mask_that_is_its_blocks_mean(seed: int, structure: str, ratio: int) -> None:
    model = grouped_net(seed)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    weights = {layer: conv.weight.detach().clone() for layer, conv in prunable_layers(model).items()}
    scores = {layer: torch.randn_like(weight).requires_grad_() for layer, weight in weights.items()}
    groups = conv_groups(model)
    masks = slow_masks(scores, structure, ratio, "layer", groups)
    masked = {}
    for layer, score in scores.items():  # masks whose value is a step and whose slope is that of mean |s|
        numbers = block_numbers(tuple(score.shape), structure, groups[layer])
        mean = means_of(score.abs(), numbers)[numbers]
        masked[f"{layer}.weight"] = weights[layer] * (masks[layer] + mean - mean.detach())
    torch.func.functional_call(model, masked, x).square().sum().backward()
    plain = {layer: score.detach() for layer, score in scores.items()}
    with StraightThrough(model, plain, MaskRule(ratio, structure)) as pruning:  # finds the groups itself
        model(x).square().sum().backward()
        found = {n.removesuffix(".parametrizations.weight.0.scores"): p.grad for n, p in model.named_parameters()}
        assert all(torch.equal(mask, masks[layer]) for layer, mask in pruning.masks().items())
    for layer, score in scores.items():
        torch.testing.assert_close(found[layer], score.grad)


@pytest.mark.parametrize("structure", BLOCK_STRUCTURES)
def test_optimized_blocks_come_back_and_the_finished_model_answers_as_the_masked_one(structure: str) -> None:
    model = grouped_net(0)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    with StraightThrough(model, score_model(model, "scaled"), MaskRule(60, structure)) as pruning:
        optimizer = torch.optim.SGD(pruning.parameters(), lr=5.0)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        assert pruning.churn().total > 0
        model.eval()
        expected = model(x).detach()
        masks = pruning.finish()
    torch.testing.assert_close(model(x), expected)
    assert all(goes_as_a_whole(mask, structure, conv_groups(model)[layer]) for layer, mask in masks.items())


@pytest.mark.parametrize("structure", BLOCK_STRUCTURES)
def test_blocks_stay_zero_in_training(structure: str) -> None:
    model = make_model().train()
    masks = MaskRule(60, structure, conv_groups=conv_groups(model))(score_model(model, "scaled"))
    with FrozenMasks(model, masks) as frozen:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        frozen.guard(optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 6, 6)).square().mean().backward()
            optimizer.step()
    for layer, conv in prunable_layers(model).items():
        assert not conv.weight[~masks[layer]].any()
        assert (~masks[layer]).any()


@pytest.mark.parametrize("structure", BLOCK_STRUCTURES)
@pytest.mark.parametrize(
    ("allocation", "budget"),
    [("uniform", "macs=40%"), ("global", "parameters=30%"), ("erk", "macs=50%"), ("lamp", "parameters=4k"),
     ("mrs", "macs=60%")],
)  # fmt: skip
def test_budgets_count_weights_and_are_met_within_a_percent(structure: str, allocation: str, budget: str) -> None:
    model = make_model(width=26)  # partial blocks everywhere, blocks of one in the depthwise layer
    scores = score_model(model, "magnitude")
    sensitivities = {name: 1.0 + i for i, name in enumerate(scores)}
    masks = allocate(
        model, scores, budget=budget, example_input=X, structure=structure, allocation=allocation,
        sensitivities=sensitivities,
    )  # fmt: skip
    costs = count_costs(model, X, masks)
    kind, amount = budget.split("=")
    dense, kept = (costs.macs, costs.kept_macs) if kind == "macs" else (costs.weights, costs.kept_weights)
    allowed = 4000 if amount == "4k" else dense * float(amount[:-1]) / 100
    assert 0.99 * allowed <= kept <= allowed
    assert all(goes_as_a_whole(mask, structure, conv_groups(model)[layer]) for layer, mask in masks.items())


@pytest.mark.parametrize("structure", BLOCK_STRUCTURES)
def test_a_budget_in_percent_is_a_share_of_blocks(structure: str) -> None:
    model = make_model(width=26)
    scores = score_model(model, "magnitude")
    rule = allocated(model, scores, MaskRule(0, structure), "70%", allocation="erk")
    masks = rule(scores)
    kept = [
        means_of(mask.float(), block_numbers(tuple(mask.shape), structure, conv_groups(model)[layer]))
        for layer, mask in masks.items()
    ]
    assert float(torch.cat(kept).mean()) == pytest.approx(0.3, rel=0.01)


def test_documents_name_every_structure() -> None:
    docs = Path(__file__).parents[2] / "docs"
    for name in STRUCTURES:
        assert f"`{name}`" in (docs / "pruning.md").read_text()
        assert f"`{name}`" in (docs / "pipeline.md").read_text()


@pytest.mark.parametrize("permute", [False, True])
def test_condensed_columns_are_as_few_as_the_blocks_that_are_kept(permute: bool) -> None:
    weight = torch.randn(96, 40, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = MaskRule(90, "block16x1", conv_groups={"": 2})({"": weight})[""]
    packed = condense(weight, mask, groups=2, permute=permute)
    kept = mask[::16].flatten(1).sum(dim=1)  # blocks of each 16 filters: as many columns, padded to multiples of 16
    assert sorted(packed.starts.diff().tolist()) == sorted((-(-kept // 16) * 16).tolist())
