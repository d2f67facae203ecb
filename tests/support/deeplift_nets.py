"""Nets, comparisons and checks that DeepLIFT's tests share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from prunekit.prune.deeplift import RULES, Comparison, Contributions, deeplift_contributions
from prunekit.prune.deeplift.attribution import RuleName
from tests.support import deeplift_oracle
from tests.support.deeplift_oracle import ACTIVATIONS, Step, StepNet

both_rules = pytest.mark.parametrize("rule", RULES)


def conv(rng: np.random.Generator, source: int, c: int, k: int, size: int = 3, **options: int) -> Step:
    weight = rng.normal(size=(k, c, size, size)) * math.sqrt(2 / (c * size * size))
    return Step("conv", (source,), {"weight": weight, "bias": rng.normal(size=k), **options})


def norm(rng: np.random.Generator, source: int, c: int) -> Step:
    scale = rng.choice([-1, 1], size=c) * rng.uniform(0.5, 2, size=c)
    return Step("norm", (source,), {"scale": scale, "shift": rng.normal(size=c)})


def activation(source: int, name: str) -> Step:
    return Step("activation", (source,), {"name": name})


def residual_net(name: str) -> list[Step]:
    """Convolutions of stride 1 and 2, batch norms with negative scales, and a shortcut before an activation."""
    rng = np.random.default_rng(1)
    return [
        conv(rng, 0, 3, 5, padding=1, stride=2),
        norm(rng, 1, 5),
        activation(2, name),
        conv(rng, 3, 5, 5, padding=1),
        norm(rng, 4, 5),
        Step("add", (3, 5)),
        activation(6, name),
        conv(rng, 7, 5, 2, size=1),
    ]


def tiny_yolo_net() -> list[Step]:
    """LeakyReLU before max-pools that tile, that overlap and that pad; upsampling and a concatenation."""
    rng = np.random.default_rng(2)
    return [
        conv(rng, 0, 3, 4, padding=1),
        norm(rng, 1, 4),
        activation(2, "leaky_relu"),
        Step("pool", (3,), {"kernel_size": 2, "stride": 2, "padding": 0}),
        conv(rng, 4, 4, 4, padding=1),
        activation(5, "leaky_relu"),
        Step("pool", (6,), {"kernel_size": 3, "stride": 1, "padding": 1}),
        conv(rng, 7, 4, 3, size=1),
        activation(8, "leaky_relu"),
        Step("upsample", (9,)),
        Step("cat", (10, 3)),
        conv(rng, 11, 7, 2),
    ]


def gated_net() -> list[Step]:
    """A squeeze-like gate: one activation times another, and a square."""
    rng = np.random.default_rng(3)
    return [
        conv(rng, 0, 3, 4, padding=1),
        activation(1, "silu"),
        conv(rng, 2, 4, 4, size=1),
        activation(3, "sigmoid"),
        Step("mul", (2, 4)),
        Step("mul", (5, 5)),
        conv(rng, 6, 4, 2),
    ]


def images(steps: list[Step], shared_reference: bool, size: int = 6) -> tuple[Any, Any, Any]:
    """Return x [3, 3, size, size], a reference and the weights of the target."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(3, 3, size, size)) * 2
    x_ref = rng.normal(size=(1 if shared_reference else 3, 3, size, size))
    out = deeplift_oracle.forward(steps, x)[-1]
    return x, x_ref, rng.normal(size=out.shape)


def weighted_sum(weights: Any) -> Callable[[Tensor], Tensor]:
    return lambda out: (out * torch.tensor(weights)).flatten(1).sum(dim=1)


def contributions_of(steps: list[Step], x: Any, x_ref: Any, weights: Any, rule: RuleName, spelling: int = 0) -> Any:
    comparison = Comparison(torch.tensor(x), torch.tensor(x_ref), weighted_sum(weights))
    return deeplift_contributions(StepNet(steps, spelling), comparison, rule)


@st.composite
def random_steps(draw: st.DrawFn, kinds: tuple[str, ...]) -> list[Step]:
    """Up to eight steps on values of one size, so that any two can meet."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = [conv(rng, 0, 3, 4, padding=1)]
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(kinds))
        source, other = draw(st.integers(1, len(steps))), draw(st.integers(1, len(steps)))
        if kind == "conv":
            steps.append(conv(rng, source, 4, 4, padding=1))
        elif kind == "norm":
            steps.append(norm(rng, source, 4))
        elif kind == "activation":
            steps.append(activation(source, draw(st.sampled_from(sorted(ACTIVATIONS)))))
        elif kind == "pool":
            steps.append(Step("pool", (source,), {"kernel_size": 3, "stride": 1, "padding": 1}))
        else:
            steps.append(Step(kind, (source, other)))
    return [*steps, conv(rng, len(steps), 4, 2)]


def check_completeness(found: Contributions) -> None:
    completeness = found.completeness
    assert_close(completeness.found, completeness.expected, rtol=0, atol=1e-11 * float(completeness.size.max()))


class TwoHeads(nn.Module):
    """A residual, an upsampling, a concatenation and two heads, of modules, each called once."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), activation())
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), activation())
        self.down = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), activation())
        self.coarse = nn.Conv2d(8, 5, 1)
        self.fine = nn.Conv2d(14, 5, 3, groups=1, padding=2, dilation=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.stem(x)
        h = h + self.block(h)
        low = self.down(h)
        joined = torch.cat([functional.interpolate(low, scale_factor=2), h], dim=1)
        return self.coarse(low), self.fine(joined)


def both_heads(outputs: tuple[Tensor, Tensor]) -> Tensor:
    coarse, fine = outputs
    return coarse.flatten(1).sum(dim=1) * 2 - fine.flatten(1)[:, ::3].sum(dim=1)


def two_heads(activation: Callable[[], nn.Module]) -> TwoHeads:
    torch.manual_seed(0)
    net = TwoHeads(activation)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.normal_(module.bias)
            module.running_var = 0.5 + 1.5 * torch.rand(module.num_features)
    return net.double().eval()


def sum_of_heads(outputs: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([head.flatten(1).sum(dim=1) for head in outputs]).sum(dim=0)


def simple_comparison() -> Comparison:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 10
    return Comparison(x, torch.zeros_like(x[:1]), lambda out: out.flatten(1).sum(dim=1))


def conv_then(step: Callable[[Tensor], Any]) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Any:
            return step(self.conv(x))

    return Net()
