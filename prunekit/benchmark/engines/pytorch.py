"""Torch itself: eager, folded and compiled."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from prunekit.benchmark.engines.calls import Call, as_tuple
from prunekit.benchmark.engines.precisions import check_bfloat16


def torch_eager(model: nn.Module, x: Tensor) -> Call:
    """Run the model as it is."""
    return lambda: as_tuple(model(x))


def torch_folded(model: nn.Module, x: Tensor) -> Call:
    """Run eager with BatchNorm folded into convolutions, channels last."""
    folded: Any = fuse(model)
    folded.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: as_tuple(folded(x))


def torch_compiled(model: nn.Module, x: Tensor) -> Call:
    """Run torch.compile with freezing, channels last: BatchNorm folded, weights prepacked, activations fused."""
    torch._dynamo.reset()
    channels_last: Any = copy.deepcopy(model)
    channels_last.to(memory_format=torch.channels_last)
    compiled: Any = torch.compile(channels_last, options={"freezing": True})
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: as_tuple(compiled(x))


def torch_compiled_bfloat16(model: nn.Module, x: Tensor) -> Call:
    """Run torch.compile as `torch_compiled` does, in bfloat16 between float32 inputs and outputs.

    Weights and activations are bfloat16 throughout. Under autocast, convolutions would compute the same, but whatever
    is not on its list would read and write twice the bytes.

    Raises:
        UnavailableError: The processor has no instructions for bfloat16.
    """
    check_bfloat16()
    return torch_compiled(InBfloat16(model), x)


class InBfloat16(nn.Module):
    """A copy of a model that computes in bfloat16, and takes and returns float32 as the other engines do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(torch.bfloat16)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for an input [N, C, H, W] in float32."""
        outputs = as_tuple(self.model(x.to(torch.bfloat16)))
        return tuple(y.float() if y.dtype == torch.bfloat16 else y for y in outputs)
