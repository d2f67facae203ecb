"""A patch: where it lies, what it covers, that gradients reach it, and that it stays within what can be printed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunekit.attacks import GradientError, PatchConfig, PatchState, draw_placement, pasted, random_patch, trained_step
from prunekit.attacks.patch import Area, Placement
from prunekit.errors import InputError

AREA = Area(top=10, left=3, bottom=50, right=103)
CONFIG = PatchConfig(size=0.5, size_spread=0.3, brightness_spread=0.2, pixels=8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_placements_lie_in_the_area_and_use_all_of_it() -> None:
    shared = generator()
    places = [draw_placement(AREA, CONFIG, shared) for _ in range(2000)]
    assert min(place.top for place in places) == AREA.top
    assert min(place.left for place in places) == AREA.left
    assert max(place.top + place.side for place in places) == AREA.bottom
    assert max(place.left + place.side for place in places) == AREA.right
    assert {place.side for place in places} == {*range(14, 27)}
    assert min(place.brightness for place in places) == pytest.approx(0.8, abs=0.01)
    assert max(place.brightness for place in places) == pytest.approx(1.2, abs=0.01)


def test_a_patch_of_full_size_fits_into_the_shorter_side() -> None:
    place = draw_placement(AREA, replace(CONFIG, size=1.0, size_spread=0.0), generator())
    assert place.side == 40
    assert place.top == AREA.top


@pytest.mark.parametrize("side", [3, 8, 13])
def test_pasting_covers_a_square_and_nothing_else(side: int) -> None:
    x, patch = torch.rand(2, 3, 20, 30, generator=generator()), torch.full((3, 8, 8), 0.5)
    before = x.clone()
    places = [Placement(2, 4, side, 0.8), Placement(5, 17, side, 4.0)]
    y = pasted(patch, x, places)
    assert torch.equal(x, before)
    for image, place, value in zip(y, places, (0.4, 1.0), strict=True):
        covered = image[:, place.top : place.top + side, place.left : place.left + side]
        torch.testing.assert_close(covered, torch.full_like(covered, value))
    changed = (y != x).any(dim=1)
    assert changed.sum(dim=(1, 2)).tolist() == [side * side, side * side]


def test_the_patch_itself_is_pasted_where_sizes_agree() -> None:
    patch = torch.rand(3, 8, 8, generator=generator())
    y = pasted(patch, torch.zeros(1, 3, 8, 8), [Placement(0, 0, 8, 1.0)])
    torch.testing.assert_close(y[0], patch)


class Red(nn.Module):
    """Sums the red of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].sum(dim=(1, 2))


def test_steps_climb_the_loss_and_stop_at_what_can_be_printed() -> None:
    config = replace(CONFIG, step_size=0.2, momentum=0.0)
    state, x, place = PatchState.gray(config), torch.zeros(1, 3, 16, 16), [Placement(0, 0, 8, 1.0)]
    once = trained_step(Red(), x, place, lambda y: y, state, config)
    assert torch.equal(once.patch[0], state.patch[0] + 0.2)
    assert torch.equal(once.patch[1:], state.patch[1:])
    for _ in range(5):
        state = trained_step(Red(), x, place, lambda y: y, state, config)
    assert torch.equal(state.patch[0], torch.full((8, 8), config.brightest))


def test_velocity_remembers_earlier_steps() -> None:
    config = replace(CONFIG, momentum=0.9)
    state, x, place = PatchState.gray(config), torch.zeros(1, 3, 16, 16), [Placement(0, 0, 8, 1.0)]
    up = trained_step(Red(), x, place, lambda y: y, state, config)
    up = trained_step(Red(), x, place, lambda y: y, up, config)
    # A weak step down cannot turn what two steps up have built.
    down = trained_step(Red(), x, place, lambda y: -y, up, config)
    assert (down.velocity[0] > 0).all()
    assert (down.velocity[0] < up.velocity[0]).all()


def test_a_loss_that_does_not_see_the_patch_is_an_error() -> None:
    state, x = PatchState.gray(CONFIG), torch.zeros(1, 3, 16, 16)
    with pytest.raises(GradientError, match="does not depend on the image"):
        trained_step(Red(), x, [Placement(0, 0, 8, 1.0)], lambda y: y.detach(), state, CONFIG)


def test_a_random_patch_is_printable_and_repeats() -> None:
    patch = random_patch(CONFIG, generator(3))
    assert patch.shape == (3, 8, 8)
    assert 0.05 <= float(patch.min()) < 0.15
    assert 0.85 < float(patch.max()) <= 0.95
    assert torch.equal(patch, random_patch(CONFIG, generator(3)))


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0.0}, {"pixels": 0}, {"size_spread": 1.0}, {"momentum": 1.0}, {"darkest": 0.9, "brightest": 0.9},
     {"step_size": 0.0}, {"step_size": float("inf")}],
)  # fmt: skip
def test_knobs_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Expected"):
        PatchConfig(**wrong)
