"""Scores rank weights, masks keep exactly as many as asked, mask files refuse what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.prune import (
    SCORES,
    apply_masks,
    initial_scores,
    load_masks,
    load_scores,
    magnitude_scores,
    masks_from_scores,
    prunable_layers,
    save_masks,
    save_scores,
    scaled_scores,
    score_model,
    sparsity,
    taylor_scores,
)
from prunekit.prune.selection import keep_highest

RATIOS = (0, 1, 29, 50, 90, 99)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Sequential(nn.Conv2d(5, 7, 1), nn.Conv2d(7, 7, 3, groups=7))
    )


def test_scaled_scores_follow_hydras_formula_element_by_element() -> None:
    weight = torch.randn(4, 3, 3, 5)
    expected = [(6 / 45) ** 0.5 * w / weight.abs().max().item() for w in weight.flatten().tolist()]
    torch.testing.assert_close(scaled_scores(weight).flatten(), torch.tensor(expected))


def test_scaled_scores_rank_a_layer_as_the_magnitudes_do() -> None:
    weight = torch.randn(16, 8, 3, 3)
    order = scaled_scores(weight).abs().flatten().argsort()
    scores, magnitudes = scaled_scores(weight).abs().flatten()[order], weight.abs().flatten()[order]
    assert ((magnitudes.diff() >= 0) | (scores.diff() == 0)).all()


def test_a_layer_of_zeros_scores_zero() -> None:
    assert not scaled_scores(torch.zeros(2, 3, 1, 1)).any()


def test_scores_do_not_alias_the_weights(model: nn.Module) -> None:
    for name in (name for name, score in SCORES.items() if not score.needs_batches):
        for layer, score in score_model(model, name).items():
            assert score.data_ptr() != prunable_layers(model)[layer].weight.data_ptr()


@pytest.mark.parametrize("ratio", RATIOS)
def test_each_layer_keeps_exactly_its_share(model: nn.Module, ratio: int) -> None:
    for mask in masks_from_scores(score_model(model, "scaled"), ratio).values():
        assert int(mask.sum()) == mask.numel() - (mask.numel() * ratio) // 100


@pytest.mark.parametrize("ratio", RATIOS[1:])
def test_dropped_weights_are_the_smallest_of_their_layer(model: nn.Module, ratio: int) -> None:
    masks = masks_from_scores(score_model(model, "magnitude"), ratio)
    for layer, conv in prunable_layers(model).items():
        magnitude, mask = conv.weight.abs(), masks[layer]
        assert mask.all() or magnitude[~mask].max() <= magnitude[mask].min()


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(0, 99), st.integers(0, 99))
def test_masks_nest_across_ratios_even_among_equal_scores(values: list[int], a: int, b: int) -> None:
    scores = {"layer": torch.tensor(values, dtype=torch.float32)}
    low, high = sorted((a, b))
    kept_at_low = masks_from_scores(scores, low)["layer"]
    kept_at_high = masks_from_scores(scores, high)["layer"]
    assert int(kept_at_high.sum()) == len(values) - len(values) * high // 100
    assert not (kept_at_high & ~kept_at_low).any()


@pytest.mark.parametrize("ratio", [-1, 100, 250, float("nan")])
def test_a_ratio_outside_the_range_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match="at least 0 and below 100"):
        masks_from_scores({"layer": torch.ones(4)}, ratio)


def test_nan_scores_are_refused() -> None:
    with pytest.raises(InputError, match="'stem'"):
        masks_from_scores({"stem": torch.tensor([1.0, float("nan")])}, 50)


def test_an_unknown_score_is_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match="scaled, magnitude"):
        score_model(model, "saliency")


@pytest.mark.parametrize("name", ["taylor", "deeplift"])
def test_a_score_that_needs_images_is_not_made_from_weights(model: nn.Module, name: str) -> None:
    assert SCORES[name].needs_batches
    with pytest.raises(InputError, match="batches of images"):
        score_model(model, name)


def test_applying_masks_zeroes_dropped_weights_and_leaves_the_rest(model: nn.Module) -> None:
    convs = prunable_layers(model)
    with torch.no_grad():
        convs["0"].weight.view(-1)[0] = float("nan")
    before = {name: conv.weight.detach().clone() for name, conv in convs.items()}
    masks = masks_from_scores({name: magnitude_scores(w).nan_to_num(0) for name, w in before.items()}, 50)
    apply_masks(model, masks)
    for name, conv in convs.items():
        assert torch.equal(conv.weight[masks[name]], before[name][masks[name]])
        assert not conv.weight[~masks[name]].any()


def test_ratio_zero_leaves_the_model_bit_for_bit(model: nn.Module) -> None:
    x = torch.randn(2, 3, 9, 8)
    before = model(x)
    apply_masks(model, masks_from_scores(score_model(model, "scaled"), 0))
    assert torch.equal(model(x), before)


def test_sparsity_counts_weights_not_layers(model: nn.Module) -> None:
    masks = {name: torch.ones_like(conv.weight, dtype=torch.bool) for name, conv in prunable_layers(model).items()}
    masks["0"].zero_()
    total = 5 * 27 + 7 * 5 + 7 * 9
    assert sparsity(masks) == pytest.approx(135 / total)
    apply_masks(model, masks)
    assert sparsity(model) == pytest.approx(135 / total)


def test_masks_survive_a_file(model: nn.Module, tmp_path: Path) -> None:
    masks = masks_from_scores(score_model(model, "scaled"), 75)
    save_masks(tmp_path / "new" / "masks.safetensors", masks)
    loaded = load_masks(tmp_path / "new" / "masks.safetensors", model)
    assert loaded.keys() == masks.keys()
    assert all(torch.equal(loaded[name], masks[name]) for name in masks)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["masks.safetensors"]


def _without_a_layer(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask for name, mask in masks.items() if name != "2.0"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_a_layer, r"lacks \['2.0'\]"),
        (lambda masks: masks | {"extra": torch.ones(1, dtype=torch.bool)}, r"unknown \['extra'\]"),
        (lambda masks: masks | {"0": masks["0"][:, :2].contiguous()}, r"\(5, 3, 3, 3\).*\(5, 2, 3, 3\)"),
        (lambda masks: masks | {"0": masks["0"].float()}, "bool mask.*float32"),
    ],
)
def test_a_mask_file_that_does_not_fit_is_refused(model, tmp_path, damage, message) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "masks.safetensors"
    save_file(damage(masks_from_scores(score_model(model, "scaled"), 50)), path)
    with pytest.raises(InputError, match=message) as caught:
        load_masks(path, model)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"no safetensors file at all"])
def test_a_mask_file_that_is_missing_or_damaged_is_refused(
    model: nn.Module, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "masks.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"masks\.safetensors"):
        load_masks(path, model)


def test_random_scores_are_the_seeds(model: nn.Module) -> None:
    first, again, other = (score_model(model, "random", seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[layer], again[layer]) for layer in first)
    assert not any(torch.equal(first[layer], other[layer]) for layer in first)
    assert not torch.equal(first["2.0"].flatten(), first["2.1"].flatten()[:35])


def test_scores_from_elsewhere_take_the_scale_of_hydra_and_the_weights_signs(model: nn.Module) -> None:
    scores = score_model(model, "random")
    scores["0"] = -scores["0"]
    scores["2.0"].zero_()
    initial = initial_scores(model, scores)
    for layer, conv in prunable_layers(model).items():
        fan_in, score = conv.weight[0].numel(), scores[layer].abs()
        expected = (6 / fan_in) ** 0.5 * score / score.max().clamp(min=1e-30) * conv.weight.detach().sign()
        torch.testing.assert_close(initial[layer], expected)
        assert torch.equal(masks_from_scores(initial, 50)[layer], masks_from_scores(scores, 50)[layer])


def test_scores_survive_a_file_and_refuse_another_model(model: nn.Module, tmp_path: Path) -> None:
    scores = score_model(model, "scaled")
    save_scores(tmp_path / "scores.safetensors", scores)
    loaded = load_scores(tmp_path / "scores.safetensors", model)
    assert all(torch.equal(loaded[layer], scores[layer]) for layer in scores)
    with pytest.raises(InputError, match=r"scores\.safetensors.*lacks"):
        load_scores(tmp_path / "scores.safetensors", nn.Sequential(*model, nn.Sequential(nn.Conv2d(7, 1, 1))))  # type: ignore[misc]
    save_masks(tmp_path / "masks.safetensors", masks_from_scores(scores, 50))
    with pytest.raises(InputError, match="float tensor"):
        load_scores(tmp_path / "masks.safetensors", model)


def test_taylor_scores_are_weight_times_gradient_by_finite_differences(model: nn.Module) -> None:
    model.double().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = [torch.randn(2, 3, 6, 5, dtype=torch.float64) for _ in range(3)]

    def loss(outputs: Tensor) -> Tensor:
        return outputs.square().mean(dim=(1, 2, 3))

    prunable_layers(model)["0"].weight.requires_grad_(False)
    scores = taylor_scores(model, [(x, loss) for x in images])
    assert model.training
    assert not prunable_layers(model)["0"].weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    for layer, index in (("0", 7), ("2.0", 3), ("2.1", 60)):
        weight, differences = prunable_layers(model)[layer].weight.detach().view(-1), []
        value = float(weight[index])
        for x in images:
            sides = []
            for shift in (1e-6, -1e-6):
                weight[index] = value + shift
                sides.append(loss(model(x)).mean().item())
            weight[index] = value
            differences.append(abs(value * (sides[0] - sides[1]) / 2e-6))
        assert float(scores[layer].view(-1)[index]) == pytest.approx(sum(differences) / 3, rel=1e-5)


def test_taylor_scores_need_a_batch_and_a_finite_loss(model: nn.Module) -> None:
    with pytest.raises(InputError, match="at least one batch"):
        taylor_scores(model, [])
    with pytest.raises(InputError, match="finite loss, got nan"):
        taylor_scores(model, [(torch.randn(1, 3, 6, 6), lambda outputs: outputs.mean() * float("nan"))])


def test_a_layer_that_the_loss_does_not_see_scores_zero() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.used(x)
            return y

    scores = taylor_scores(Idle(), [(torch.randn(1, 3, 4, 4), lambda outputs: outputs.sum())])
    assert scores["used"].any()
    assert not scores["idle"].any()


@given(
    st.integers(0, 10**6),
    st.integers(1, 300),
    st.integers(0, 100),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_selection_drops_exactly_the_lowest(seed: int, size: int, percent: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(size, generator=generator).mul(20).round().div(7).to(dtype)
    num_dropped = size * percent // 100
    order = sorted(range(size), key=lambda i: (float(values[i]), i))
    mask = keep_highest(values, num_dropped)
    assert set(order[:num_dropped]) == set((~mask).nonzero().flatten().tolist())


@pytest.mark.parametrize("num_weights", [1, 2])
@pytest.mark.parametrize("ratio", [0, 50, 99])
def test_layers_of_one_weight_and_of_zeros_keep_their_share(num_weights: int, ratio: int) -> None:
    scores = {"layer": torch.zeros(num_weights, 1, 1, 1)}
    assert int(masks_from_scores(scores, ratio)["layer"].sum()) == num_weights - num_weights * ratio // 100
