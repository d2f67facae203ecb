"""Each structure drops exactly what it says, of whole units, and nests across ratios."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.prune import STRUCTURES, MaskRule, apply_masks, count_costs, prunable_layers, score_model
from tests.support.pruning_nets import Residual, groups_of, make_model

RATIOS = (0, 1, 29, 50, 90, 99)


@pytest.fixture
def model() -> nn.Module:
    return make_model()


def num_dropped(mask: Tensor) -> int:
    return int((~mask).sum())


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_global_scope_drops_the_lowest_of_all_layers_together(model: nn.Module, ratio: int) -> None:
    scores = score_model(model, "scaled")
    masks = MaskRule(ratio, scope="global")(scores)
    everything = torch.cat([score.abs().flatten() for score in scores.values()])
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    assert num_dropped(kept) == len(kept) * ratio // 100
    assert kept.all() or everything[~kept].max() <= everything[kept].min()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_ratio_zero_drops_nothing_and_changes_no_bit(model: nn.Module, structure: str, scope: str) -> None:
    x = torch.randn(2, 3, 6, 7)
    before, groups = model(x), groups_of(model)
    masks = MaskRule(0, structure, scope, groups=groups)(score_model(model, "scaled"))
    assert all(mask.all() for mask in masks.values())
    apply_masks(model, masks, groups)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("ratio", RATIOS)
def test_kernels_go_as_a_whole_and_in_the_order_of_their_mean(model: nn.Module, ratio: int) -> None:
    scores = score_model(model, "scaled")
    for layer, mask in MaskRule(ratio, "kernel2d")(scores).items():
        kernels = mask.flatten(2)
        assert torch.equal(kernels.all(dim=2), kernels.any(dim=2))
        kept, means = kernels.all(dim=2), scores[layer].abs().mean(dim=(2, 3))
        assert num_dropped(kept) == kept.numel() * ratio // 100
        assert kept.all() or means[~kept].max() <= means[kept].min()


@pytest.mark.parametrize("ratio", RATIOS)
def test_filters_go_as_a_whole_in_tied_layers_together(model: nn.Module, ratio: int) -> None:
    masks = MaskRule(ratio, "filter", groups=groups_of(model))(score_model(model, "scaled"))
    kept = {layer: mask.flatten(1).any(dim=1) for layer, mask in masks.items()}
    for layer, mask in masks.items():
        assert torch.equal(kept[layer], mask.flatten(1).all(dim=1))
    assert num_dropped(kept["stem"]) == 8 * ratio // 100
    assert num_dropped(kept["wide"]) == 16 * ratio // 100
    assert num_dropped(kept["last"]) == 5 * ratio // 100
    assert torch.equal(kept["stem"], kept["block"])
    assert torch.equal(kept["wide"], kept["depthwise"])
    assert kept["head"].all()


def test_a_units_score_gives_each_of_its_filters_one_voice(model: nn.Module) -> None:
    scores = {layer: torch.ones_like(conv.weight) for layer, conv in prunable_layers(model).items()}
    scores["stem"][2], scores["block"][2] = 3.0, -0.2  # mean 1.6: kept, though block has more weights than stem
    scores["stem"][5], scores["block"][5] = 0.1, 1.5  # mean 0.8: dropped
    masks = MaskRule(13, "filter", groups=groups_of(model))(scores)  # 1 of 8
    assert masks["block"].flatten(1).any(dim=1).tolist() == [True] * 5 + [False] + [True] * 2


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_every_layer_keeps_a_filter(scope: str) -> None:
    model = make_model(width=2)
    scores = score_model(model, "scaled")
    scores["block"].zero_()
    scores["stem"].zero_()
    for mask in MaskRule(99, "filter", scope, groups=groups_of(model))(scores).values():
        assert mask.any()


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("filter_ratio", [None, 0.0, 25.0])
def test_hybrid_meets_the_ratio_of_weights_exactly(model: nn.Module, ratio: int, filter_ratio: float | None) -> None:
    if filter_ratio is not None and filter_ratio > ratio:
        with pytest.raises(InputError, match="from 0 to the pruning ratio"):
            MaskRule(ratio, "hybrid", groups=groups_of(model), filter_ratio_percent=filter_ratio)
        return
    rule = MaskRule(ratio, "hybrid", groups=groups_of(model), filter_ratio_percent=filter_ratio)
    for mask in rule(score_model(model, "scaled")).values():
        assert num_dropped(mask) == mask.numel() * ratio // 100


def test_hybrid_drops_the_filters_that_filter_pruning_would(model: nn.Module) -> None:
    scores, groups = score_model(model, "scaled"), groups_of(model)
    filters = MaskRule(50, "filter", groups=groups)(scores)
    hybrid = MaskRule(75, "hybrid", groups=groups)(scores)  # densities 0.5 and 0.5
    for layer, mask in hybrid.items():
        assert not (mask & ~filters[layer]).any()
        inside = filters[layer]
        dropped, kept = scores[layer].abs()[inside & ~mask], scores[layer].abs()[mask]
        assert dropped.max() <= kept.min()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_excluded_layers_keep_everything(model: nn.Module, structure: str) -> None:
    groups = groups_of(model)
    assert (groups.stems, groups.heads) == (("stem",), ("head",))
    rule = MaskRule(90, structure, groups=groups, excluded=groups.stems + groups.heads)
    masks = rule(score_model(model, "scaled"))
    assert list(masks) == list(prunable_layers(model))
    assert masks["stem"].all()
    assert masks["head"].all()
    assert not masks["wide"].all()
    assert masks["block"].all() == (structure == "filter")  # its filters are tied to the stem's


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(0, 99),
    st.integers(0, 99),
    st.sampled_from(sorted(STRUCTURES.keys() - {"hybrid"})),
    st.sampled_from(["layer", "global"]),
    st.integers(1, 6),
)
def test_masks_nest_across_ratios(seed: int, a: int, b: int, structure: str, scope: str, width: int) -> None:
    model = make_model(seed, width)
    scores = {layer: (3 * score).round() for layer, score in score_model(model, "scaled").items()}  # many ties
    groups = groups_of(model)
    low, high = (MaskRule(ratio, structure, scope, groups=groups)(scores) for ratio in sorted((a, b)))
    assert all(not (high[layer] & ~low[layer]).any() for layer in low)
    if structure == "unstructured":
        for name, masks in (("low", low), ("high", high)):
            flat = torch.cat([mask.flatten() for mask in masks.values()])
            ratio = min(a, b) if name == "low" else max(a, b)
            layers = [flat] if scope == "global" else list(masks.values())
            assert all(num_dropped(mask) == mask.numel() * ratio // 100 for mask in layers)


def test_a_dropped_channel_is_zero_behind_its_activation_in_training_and_evaluation(model: nn.Module) -> None:
    groups = groups_of(model)
    masks = MaskRule(50, "filter", groups=groups)(score_model(model, "scaled"))
    apply_masks(model, masks, groups)
    x = torch.randn(2, 3, 6, 6)
    assert isinstance(model, Residual)
    dropped = ~masks["wide"].flatten(1).any(dim=1)
    for training in (False, True):
        model.train(training)
        features = model.features(x)
        assert dropped.any()
        assert not features[:, dropped].any()
        assert features[:, ~dropped].any()
        assert not model.last(features)[:, ~masks["last"].flatten(1).any(dim=1)].any()  # no norm: its bias went


def test_a_normalization_without_weights_answers_zero_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 2, 1)).eval()
    model[1].running_mean = torch.randn(6)
    groups = groups_of(model)
    masks = MaskRule(50, "filter", groups=groups)(score_model(model, "scaled"))
    apply_masks(model, masks, groups)
    z = model[1](model[0](torch.randn(2, 3, 4, 4)))
    assert not z[:, ~masks["0"].flatten(1).any(dim=1)].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio_percent": 100}, "at least 0 and below 100"),
        ({"ratio_percent": 50, "structure": "rows"}, ", ".join(STRUCTURES) + ", got 'rows'"),
        ({"ratio_percent": 50, "scope": "block"}, "layer, global, got 'block'"),
        ({"ratio_percent": 50, "structure": "filter"}, "needs the model's channel groups"),
    ],
)
def test_a_wrong_rule_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskRule(**arguments)  # type: ignore[arg-type]


def test_scores_of_another_model_are_refused(model: nn.Module) -> None:
    rule = MaskRule(50, "filter", groups=groups_of(model))
    with pytest.raises(InputError, match="channel groups were read from"):
        rule(score_model(make_model(width=4), "scaled"))
    with pytest.raises(InputError, match=r"excluded.*\['stam'\]"):
        MaskRule(50, excluded=("stam",))(score_model(model, "scaled"))


def test_costs_count_multiply_accumulates_by_hand() -> None:
    first, second = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3)
    model = nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    groups = groups_of(model)
    masks = {layer: torch.ones_like(conv.weight, dtype=torch.bool) for layer, conv in prunable_layers(model).items()}
    masks["0"][:2] = False
    masks["1"][5, 3, 0, 0] = False
    x = torch.zeros(2, 3, 12, 12)
    dense = [(108, 108 * 72), (216, 216 * 32), (30, 60)]
    assert [(row.weights, row.macs) for row in count_costs(model, x).layers] == dense
    assert count_costs(model, x).kept_macs == count_costs(model, x).macs == sum(macs for _, macs in dense)
    assert [row.kept_weights for row in count_costs(model, x, masks).layers] == [54, 215, 30]
    cost = count_costs(model, x, masks, groups)
    assert [row.kept_weights for row in cost.layers] == [54, 107, 30]
    assert cost.kept_macs == 54 * 72 + 107 * 32 + 60
    assert cost.sparsity == pytest.approx(1 - (54 + 107 + 30) / 354)


def test_costs_of_filter_pruning_are_those_of_the_smaller_model(model: nn.Module) -> None:
    groups = groups_of(model)
    masks = MaskRule(50, "filter", groups=groups)(score_model(model, "scaled"))
    rows = {row.name: row for row in count_costs(model, torch.zeros(1, 3, 6, 6), masks, groups).layers}
    kept = {name: row.kept_weights for name, row in rows.items()}
    last = 9 * 8 * 3  # of 16 channels in 8 are left, of 5 out 3
    assert kept == {"stem": 108, "block": 144, "wide": 32, "depthwise": 72, "last": last, "head": 12}
    assert rows["last"].kept_macs == last * 36
