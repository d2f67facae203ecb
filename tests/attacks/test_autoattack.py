from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from prunekit.attacks import AutoAttackConfig, PgdConfig, classification_losses
from prunekit.attacks.apgd import _periods, apgd
from prunekit.attacks.autoattack import PARTS
from prunekit.attacks.classification import (
    cross_entropy_per_image,
    targeted_dlr_per_image,
    targeted_margin_per_image,
)
from prunekit.attacks.fab import fab, project_onto_plane
from prunekit.attacks.square import square, square_side
from prunekit.errors import InputError
from tests.support.attack_problems import NUM_CLASSES, Untouched, distance, images, small_classifier

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = 0.06
QUICK = AutoAttackConfig(EPS, steps=10, targets=2, queries=50)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def labels_of(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        labels: Tensor = net(x).argmax(dim=1)
    return labels


def accuracy(net: nn.Module, x: Tensor, labels: Tensor) -> float:
    return float((labels_of(net, x) == labels).double().mean())


def robust_classifier_and_images(count: int = 60) -> tuple[nn.Module, Tensor, Tensor]:
    """A net with smooth activations, images inside the box, and as labels its own answers, some of them near a tie."""
    net = small_classifier().eval()
    x = 0.2 + 0.6 * torch.rand(count, 3, 7, 9, generator=torch.Generator().manual_seed(4))
    return net, x, labels_of(net, x)


@pytest.mark.parametrize("part", [*PARTS, "all"])
@pytest.mark.parametrize("training", [True, False])
def test_results_stay_in_the_ball_and_the_box_and_the_model_as_it_was(part: str, training: bool) -> None:
    net, x = small_classifier().train(training), images()
    labels = labels_of(small_classifier().eval(), x)
    untouched, before = Untouched(net), x.clone()
    config = QUICK if part == "all" else dataclasses.replace(QUICK, parts=(part,))
    x_adv = config.with_eps(0.1)(net, x, classification_losses(labels), generator())
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
    assert 0 < float(distance(x_adv, x, "linf").max()) <= 0.1 * (1 + 1e-5)
    assert untouched.holds()
    assert torch.equal(x, before)


def test_it_is_deterministic_by_seed_and_depends_on_it() -> None:
    net, x, labels = robust_classifier_and_images(12)
    losses = classification_losses(labels)
    first, again = (QUICK(net, x, losses, generator()) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, QUICK(net, x, losses, torch.Generator().manual_seed(4)))


def test_each_part_attacks_only_what_is_still_right_and_none_does_better_alone() -> None:
    net, x, labels = robust_classifier_and_images()
    losses = classification_losses(labels)
    after = QUICK.after_each_part(net, x, losses, generator())
    assert list(after) == list(PARTS)
    assert torch.equal(after["square"], QUICK(net, x, losses, generator()))
    previous = torch.zeros(len(x), dtype=torch.bool)
    for x_adv, later in zip([x, *after.values()], after.values(), strict=False):
        is_wrong = labels_of(net, x_adv) != labels
        assert torch.equal(x_adv[is_wrong], later[is_wrong])
        assert (is_wrong >= previous).all()
        previous = is_wrong
    together = accuracy(net, after["square"], labels)
    assert 0.1 < together < 0.9  # there is something to compare
    for part in PARTS:
        alone = dataclasses.replace(QUICK, parts=(part,))(net, x, losses, generator())
        assert accuracy(net, alone, labels) >= together
    pgd = PgdConfig(EPS, EPS / 4, 20, random_start=True)(net, x, losses, generator())
    assert accuracy(net, pgd, labels) >= together


def test_images_that_are_wrong_already_come_back_as_they_are_and_others_at_a_greater_margin() -> None:
    net, x, labels = robust_classifier_and_images(12)
    labels[::2] = (labels[::2] + 1) % NUM_CLASSES
    losses = classification_losses(labels)
    x_adv = QUICK.with_eps(1e-4)(net, x, losses, generator())
    assert torch.equal(x_adv[::2], x[::2])
    with torch.no_grad():
        assert (losses.margin(net(x_adv))[1::2] > losses.margin(net(x))[1::2]).all()


class Linear(nn.Module):
    """Logits x · w + b: two classes, and two that never win but that the targeted ratio needs."""

    def __init__(self, size: int) -> None:
        super().__init__()
        weight = torch.randn(4, size, generator=torch.Generator().manual_seed(5))
        self.weight = nn.Parameter(weight / size)
        self.bias = nn.Parameter(torch.tensor([0.0, 0.0, -9.0, -9.0]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = x.flatten(1) @ self.weight.T + self.bias
        return logits


@pytest.mark.parametrize("parts", [("apgd_ce",), ("apgd_t",), ("fab_t",), PARTS])
def test_a_linear_models_exact_robust_accuracy_is_reached(parts: tuple[str, ...]) -> None:
    """Inside the box, an image is robust exactly if its margin exceeds eps · ‖w_label - w_other‖₁."""
    x = 0.2 + 0.6 * torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    net = Linear(48)
    labels = labels_of(net, x)
    with torch.no_grad():
        margin = classification_losses(labels).margin(net(x))
    weight = net.weight.detach()
    reach = (weight[0] - weight[1]).abs().sum()
    eps = float(-margin.median() / reach)
    robust = -margin > 1.001 * eps * reach
    fragile = -margin < (0.97 if parts == ("fab_t",) else 0.999) * eps * reach  # FAB overshoots
    assert robust.sum() > 50
    assert fragile.sum() > 50
    config = AutoAttackConfig(eps, queries=20, parts=parts)
    is_right = labels_of(net, config(net, x, classification_losses(labels), generator())) == labels
    assert is_right[robust].all()
    assert not is_right[fragile].any()


def test_square_finds_what_gradients_do_not_show() -> None:
    class Masked(nn.Module):
        """Rounds the pixels to 16 levels, whose gradient is 0 everywhere."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net((15 * x).round() / 15)
            return logits

    net, x, _ = robust_classifier_and_images(20)
    masked = Masked(net)
    labels = labels_of(masked, x)
    config = AutoAttackConfig(0.1, steps=10, targets=3, queries=300)
    after = config.after_each_part(masked, x, classification_losses(labels), generator())
    found = {part: accuracy(masked, x_adv, labels) for part, x_adv in after.items()}
    assert found["fab_t"] > 0.5
    assert found["square"] < found["fab_t"] / 2


def test_the_apgd_schedule_is_the_published_one() -> None:
    ends = [step for step, period in enumerate(_periods(100), start=1) if period]
    assert ends == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [period for period in _periods(100) if period] == [22, 19, 16, 13, 10, 7, 6, 6]
    assert [*_periods(3)] == [1, 1, 1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_ends_on_the_surface_where_a_linear_loss_is_highest(norm: str) -> None:
    x = torch.full((3, 3, 4, 4), 0.5)
    net, labels = Linear(48), torch.zeros(3, dtype=torch.long)
    direction = (net.weight[1] - net.weight[0]).detach().view(3, 4, 4)
    step = direction.sign() if norm == "linf" else direction / direction.norm()
    net.bias.data[0] = 99.0  # no image is ever misclassified
    loss = targeted_margin_per_image(labels, torch.ones_like(labels))
    x_adv = apgd(net, x, labels, loss, 0.1, 60, norm, generator())  # type: ignore[arg-type]
    assert_close(x_adv, x + 0.1 * step, atol=1e-3, rtol=0)


def test_apgd_beats_sign_steps_of_one_size() -> None:
    net, x, labels = robust_classifier_and_images(20)
    loss = cross_entropy_per_image(labels)
    with torch.no_grad():
        plain = loss(net(PgdConfig(1e-3, 5e-4, 20)(net, x, classification_losses(labels))))
        ours = loss(net(apgd(net, x, labels, loss, 1e-3, 60, generator=generator())))
    assert (ours >= plain - 1e-6).all()


def test_the_projection_is_the_least_move_onto_a_plane_within_the_box() -> None:
    seeded = torch.Generator().manual_seed(7)
    x = torch.rand(40, 30, generator=seeded, dtype=torch.float64)
    normal = torch.randn(40, 30, generator=seeded, dtype=torch.float64)
    normal[:, :3] = 0
    farthest = torch.where(normal > 0, (1 - x) * normal, -x * normal).sum(dim=1)
    nearest = torch.where(normal < 0, (1 - x) * normal, -x * normal).sum(dim=1)
    for change in (0.7 * farthest, 0.7 * nearest, torch.zeros_like(farthest)):
        delta = project_onto_plane(x, normal, change)
        assert_close((normal * delta).sum(dim=1), change)
        assert (delta[:, :3] == 0).all()
        assert ((x + delta).clamp(0, 1) - x - delta).abs().max() < 1e-12
        # Least: every pixel that counts moves by the bound, or as far as the box lets it.
        bound = delta.abs().amax(dim=1, keepdim=True)
        side = torch.where(change[:, None] * normal > 0, 1 - x, x)
        assert_close(delta.abs()[:, 3:], torch.minimum(bound, side)[:, 3:])
    assert_close((normal * project_onto_plane(x, normal, 2 * farthest)).sum(dim=1), farthest)


def test_fab_finds_the_nearest_success_of_a_linear_model() -> None:
    net, x = Linear(48), 0.4 + 0.2 * torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    labels = labels_of(net, x)
    with torch.no_grad():
        margin = -classification_losses(labels).margin(net(x))
    exact = margin / (net.weight[0] - net.weight[1]).abs().sum()
    for share, succeeds in ((1.06, True), (0.99, False)):
        for row in range(len(x)):
            one = slice(row, row + 1)
            x_adv = fab(net, x[one], labels[one], 1 - labels[one], share * exact[row].item(), 20)
            assert (labels_of(net, x_adv) != labels[one]).all() == succeeds


def test_squares_shrink_as_published() -> None:
    sides = [square_side(query, 5000, 32, 32) for query in (0, 5, 6, 25, 26, 4999)]
    assert sides == [29, 29, 20, 20, 14, 1]
    assert square_side(0, 10, 1, 8) == 1


def test_square_moves_whole_squares_to_one_side_of_the_ball() -> None:
    net, x, labels = robust_classifier_and_images(4)
    x_adv = square(net, x, labels, 0.01, 40, generator())
    delta = (x_adv - x) / 0.01
    assert_close(delta.abs(), torch.ones_like(delta), atol=1e-4, rtol=0)


def test_the_targeted_ratio_is_free_of_shift_and_scale() -> None:
    logits = torch.tensor([[5.0, 1.0, 3.0, -2.0, 0.5]])
    loss = targeted_dlr_per_image(torch.tensor([0]), torch.tensor([2]))
    assert_close(loss(logits), torch.tensor([(3.0 - 5.0) / (5.0 - (1.0 + 0.5) / 2)]))
    assert_close(loss(7 * logits + 3), loss(logits))
    few = targeted_dlr_per_image(torch.tensor([0]), torch.tensor([1]))
    assert few(torch.tensor([[5.0, 1.0, 3.0]])).tolist() == [-4.0]


def test_wrong_settings_and_models_without_logits_end_in_one_sentence() -> None:
    with pytest.raises(InputError, match="queries of at least 1, got 100, 9, 0"):
        AutoAttackConfig(EPS, queries=0)
    with pytest.raises(InputError, match="Expected parts among apgd_ce, apgd_t, fab_t, square, got deepfool"):
        AutoAttackConfig(EPS, parts=("deepfool",))
    losses = dataclasses.replace(classification_losses(torch.zeros(6, dtype=torch.long)), labels=None)
    with pytest.raises(InputError, match="Expected a classifier"):
        QUICK(small_classifier(), images(), losses)
