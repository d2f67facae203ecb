"""Training that sees what int8 does: convolutions on levels, with gradients that look straight through the rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit.engine.quantization import MAX_LEVEL, MAX_WEIGHT, SMALLEST_SCALE


class QuantizationAware(nn.Module):
    """A network whose convolutions compute on inputs and weights as int8 has them (`prunekit.engine.quantization`).

    The range of an input is that of the batch. The rounding's derivative is taken as 1 (straight-through estimator,
    Bengio et al. 2013), so that zeros of weights stay zeros and get gradients, which masks hold as ever.
    """

    def __init__(self, module: nn.Module) -> None:
        """Wrap a module; its parameters are its own."""
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        """Return the module's outputs, with convolutions in int8."""
        with _Int8Convolutions():
            return self.module(x)


class _Int8Convolutions(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        named: Mapping[str, Any] = kwargs or {}
        if func is torch.conv2d and len(args) > 1:
            args = (on_levels(args[0]), on_weight_levels(args[1]), *args[2:])
        return func(*args, **named)


def on_levels(x: Tensor) -> Tensor:
    """Return x [N, C, H, W] rounded to 256 levels between its least and its greatest value, of which 0 is one."""
    with torch.no_grad():
        low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
        scale = ((high - low) / MAX_LEVEL).clamp(min=SMALLEST_SCALE)
        zero = (-low / scale).round()
        rounded = (((x / scale).round() + zero).clamp(0, MAX_LEVEL) - zero) * scale
    return x + (rounded - x).detach()


def on_weight_levels(weight: Tensor) -> Tensor:
    """Return a weight [K, C, R, S] rounded to -127 … 127 times a scale of each output channel."""
    with torch.no_grad():
        scale = (weight.abs().amax((1, 2, 3), keepdim=True) / MAX_WEIGHT).clamp(min=SMALLEST_SCALE)
        rounded = (weight / scale).round() * scale
    return weight + (rounded - weight).detach()
