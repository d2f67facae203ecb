"""Values that are made of parameters and buffers alone: computed once, when a model is captured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunekit
from prunekit.engine.capture import capture
from prunekit.engine.fusing import fuse
from prunekit.engine.model import AcceleratedModel
from prunekit.ops.native import native_status

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]
X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


class Frozen(nn.Module):
    """A convolution, its normalization by buffers as a forward may write it, and one of a computed weight."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.weight = nn.Parameter(torch.randn(5, 4, 1, 1))
        for name in ("scale", "shift", "mean", "var"):
            self.register_buffer(name, torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        buffers = (self.scale, self.shift, self.mean, self.var)
        scale, shift, mean, var = (buffer.reshape(1, -1, 1, 1) for buffer in buffers)
        scale = scale * (var + 1e-5).rsqrt()
        y = self.conv(x) * scale + (shift - mean * scale)
        return nn.functional.conv2d(y.relu(), self.weight - self.weight.mean((1, 2, 3), keepdim=True)), self.weight


class Noisy(nn.Module):
    """A convolution with noise on its weight, and channels added that are many times as many as their parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.shift = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight * torch.bernoulli(torch.full_like(self.conv.weight, 0.5))
        return nn.functional.conv2d(x, weight) + self.shift.expand(1000)[:4].reshape(1, 4, 1, 1)


def on_engine(model: nn.Module) -> AcceleratedModel:
    graph = capture(model.eval().requires_grad_(False), [X])
    fuse(graph)
    graph.compress()
    return AcceleratedModel(graph, {}, [list(X.shape)])


def test_a_frozen_normalization_goes_into_its_convolution(tmp_path: Path) -> None:
    model = Frozen()
    fast = on_engine(model)
    assert [node.op for node in fast.graph.nodes] == ["conv2d", "conv2d", "torch"]
    for found, wanted in zip(fast(X), model(X), strict=True):
        torch.testing.assert_close(found, wanted)
    fast.save(tmp_path / "fast.safetensors")
    for found, wanted in zip(prunekit.load(tmp_path / "fast.safetensors")(X), fast(X), strict=True):
        assert torch.equal(found, wanted)


def test_random_numbers_are_drawn_at_every_call_and_repetitions_stay_small() -> None:
    fast = on_engine(Noisy())
    targets = {str(node.attributes.get("target")) for node in fast.graph.nodes}
    assert "aten.bernoulli.default" in targets
    assert max(constant.numel() for constant in fast.graph.constants.values()) <= 12
    assert not torch.equal(fast(X), fast(X))
