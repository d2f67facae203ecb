"""Bounds hold for every image that is tried, are exact where they can be, and are differentiable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from prunekit.classification import mobilenetv2, mobilevit_s, resnet18, vgg16_bn
from prunekit.classification.resnet import wrn28_4
from prunekit.errors import InputError
from prunekit.verification import bounded, margin_bounds, verified_margins
from prunekit.verification.lines import clamp_lines

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = 0.02


class Residual(nn.Module):
    """Everything that has a rule: grouped and strided convolutions, sums, concatenations, all activations and pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1, inplace=True))
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding="same", groups=4, dilation=2), nn.ReLU6())
        self.right = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Hardtanh(-0.5, 0.5), nn.Dropout(0.2))
        self.pools = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem((x - 0.5) / 0.25)
        y = torch.cat([x + self.left(x), self.right(2 * x), 1 - x], dim=1)
        y += 0.1
        logits: Tensor = self.head(self.pools(torch.relu(y)))
        return logits - logits[:, :1]


def _settled(model: nn.Module, size: int = 16) -> nn.Module:
    """Return a model in eval mode and float64 with running statistics of noise."""
    model = model.double().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, 3, size, size, dtype=torch.float64))
    return model.eval()


def _images(count: int = 2, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _neighbors(x: Tensor, eps: float, count: int = 30) -> Tensor:
    """Return images of the balls, many of them corners, [count, N, ...]."""
    generator = torch.Generator().manual_seed(2)
    moves = torch.rand(count, *x.shape, generator=generator, dtype=x.dtype) * 2 - 1
    moves[::2] = moves[::2].sign()
    return (x + eps * moves).clamp(0, 1)


NETS: dict[str, Callable[[], nn.Module]] = {
    "all rules": Residual,
    "resnet18": lambda: resnet18(3, width=0.1, small_images=False),
    "vgg16-bn": lambda: vgg16_bn(3, width=0.1, small_images=True),
    "mobilenetv2": lambda: mobilenetv2(3, width=0.1, small_images=True),
    "wrn28-4": lambda: wrn28_4(3, width=0.1),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("eps", [EPS, 0.001])
def test_no_image_of_a_ball_leaves_the_bounds(name: str, eps: float) -> None:
    torch.manual_seed(0)
    model, x = _settled(NETS[name]()), _images()
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        logits = model(bounded(x, eps))
        assert_close(logits.value, model(x))
        bounds = [margin_bounds(logits, labels, relax) for relax in (False, True)]
        for found in model(_neighbors(x, eps).flatten(0, 1)).view(-1, 2, 3):
            assert (logits.lower <= found + 1e-9).all()
            assert (found <= logits.upper + 1e-9).all()
            margins = found.gather(1, labels[:, None]) - found
            for bound in bounds:
                assert (bound <= margins + 1e-9).all()
    for bound in bounds:
        assert torch.equal(bound.gather(1, labels[:, None]), torch.zeros(2, 1, dtype=torch.float64))


def test_a_ball_of_radius_0_is_its_image() -> None:
    torch.manual_seed(0)
    model, x, labels = _settled(Residual()), _images(), torch.tensor([1, 0])
    with torch.no_grad():
        logits = model(bounded(x, 0.0))
        margins = model(x).gather(1, labels[:, None]) - model(x)
    for relax in (False, True):
        assert_close(margin_bounds(logits, labels, relax), margins)


def test_the_bounds_of_a_linear_model_are_exact() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3 * 16 * 16, 4)
    model, x, labels = nn.Sequential(nn.Flatten(), linear).double(), _images(), torch.tensor([1, 3])
    weight = linear.weight.detach()
    corner = x - EPS * (weight[1] - weight[2]).sign().view(3, 16, 16)
    corner = corner.clamp(0, 1)
    logits = model(bounded(x, EPS))
    worst = (model(corner) @ torch.tensor([0.0, 1, -1, 0], dtype=torch.float64))[0]
    for relax in (False, True):
        assert_close(margin_bounds(logits, labels, relax)[0, 2], worst)


def test_intervals_of_a_network_of_one_image_are_those_by_hand() -> None:
    conv = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        conv.weight.fill_(-2.0)
        conv.bias.fill_(1.0)  # type: ignore[union-attr]
    model = nn.Sequential(conv, nn.ReLU())
    found = model(bounded(torch.tensor([[[[0.2, 0.5, 0.95]]]]), 0.1))
    assert_close(found.lower.flatten(), torch.tensor([0.4, 0.0, 0.0]))
    assert_close(found.upper.flatten(), torch.tensor([0.8, 0.2, 0.0]))


def test_linear_relaxation_beats_intervals_where_a_sum_cancels() -> None:
    class Canceling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)[:, :1]
            return torch.cat([x, torch.relu(x - 0.1)], dim=1)

    logits = Canceling()(bounded(torch.full((1, 3, 2, 2), 0.5, dtype=torch.float64), 0.2))
    labels = torch.tensor([0])  # the margin is x - relu(x - 0.1) = 0.1 all over the ball
    assert_close(margin_bounds(logits, labels, relax=True)[0, 1], torch.tensor(0.1, dtype=torch.float64))
    assert margin_bounds(logits, labels, relax=False)[0, 1] < 0


@pytest.mark.parametrize(("least", "most"), [(0.0, float("inf")), (0.0, 6.0), (-1.0, 1.0)])
@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_lines_enclose_their_function(least: float, most: float, leak: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(500, 2, generator=generator, dtype=torch.float64) * 20 - 10
    ends[:20, 1] = ends[:20, 0]  # points
    lower, upper = ends.sort(dim=1).values.unbind(1)
    lines = clamp_lines(lower, upper, least, most).leaky(leak)
    for share in torch.linspace(0, 1, 41, dtype=torch.float64):
        x = lower + share * (upper - lower)
        y = leak * x + (1 - leak) * x.clamp(least, most)
        assert (lines.lower_slope * x + lines.lower_intercept <= y + 1e-9).all()
        assert (y <= lines.upper_slope * x + lines.upper_intercept + 1e-9).all()


@pytest.mark.parametrize("relax", [False, True])
def test_the_bounds_gradients_are_those_of_differences(relax: bool) -> None:
    torch.manual_seed(0)
    model, x, labels = _settled(Residual(), 8), _images(size=8), torch.tensor([1, 0])
    conv = model.get_submodule("left.0")
    assert isinstance(conv, nn.Conv2d)

    def loss() -> Tensor:
        return margin_bounds(model(bounded(x, EPS)), labels, relax).sum()

    (gradient,) = torch.autograd.grad(loss(), [conv.weight])
    direction = torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    moved = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            conv.weight += step * direction
        moved.append(loss().item())
    assert_close((moved[0] - moved[1]) / 2e-6, float((gradient * direction).sum()), rtol=1e-4, atol=1e-6)


def test_training_mode_normalizes_by_the_images_and_counts_them_once() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).double()
                    for _ in range(2))  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    x = _images(3, size=8)
    logits = ours.train()(bounded(x, 0.0))
    assert_close(logits.value, theirs.train()(x))
    assert_close(logits.lower, logits.value)
    for name, buffer in theirs.named_buffers():
        assert_close(buffer, ours.get_buffer(name), msg=name)


def test_verified_margins_take_the_better_bound() -> None:
    torch.manual_seed(0)
    model, x, labels = _settled(Residual()), _images(), torch.tensor([1, 0])
    logits = model(bounded(x, EPS))
    both = torch.stack([margin_bounds(logits, labels, relax) for relax in (False, True)]).amax(0)
    wrong = both[torch.arange(2)[:, None], torch.tensor([[0, 2], [1, 2]])]
    found = verified_margins(model, x, labels, EPS)
    assert_close(found, wrong.amin(1).detach())
    assert not found.requires_grad


def test_autocast_does_not_touch_bounds() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    x = _images(size=4).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(bounded(x, EPS))
    assert found.value.dtype == found.lower.dtype == torch.float32
    assert torch.equal(found.lower, model(bounded(x, EPS)).lower)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.SiLU()), "got one that calls silu"),
        (nn.LeakyReLU(2.0), "slope of LeakyReLU to be from 0 to 1, got 2.0"),
        (nn.Conv2d(3, 2, 3), "returns logits"),
    ],
)
def test_what_cannot_be_bounded_is_one_sentence(model: nn.Module, words: str) -> None:
    with pytest.raises(InputError, match=words):
        verified_margins(model, torch.rand(1, 3, 8, 8), torch.tensor([0]), EPS)


def test_a_transformer_is_refused() -> None:
    with pytest.raises(InputError, match="got one that calls"):
        verified_margins(mobilevit_s(3, small_images=True).eval(), torch.rand(1, 3, 16, 16), torch.tensor([0]), EPS)


def test_values_cannot_leave_unbounded() -> None:
    x = bounded(torch.rand(1, 2), EPS)
    for leak in (lambda: x.data, lambda: x.detach(), lambda: x.numpy(), lambda: x * x, lambda: 1 / x):
        with pytest.raises(InputError, match="Expected"):
            leak()
