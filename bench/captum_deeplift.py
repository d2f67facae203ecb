"""Contributions of one layer's weights by Captum: LayerDeepLift's multipliers and the convolution's weight gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import LayerDeepLift
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


class _Explained(nn.Module):
    """A model and its target as one module, as Captum wants it."""

    def __init__(self, model: nn.Module, target: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        return self.target(self.model(x))


def captum_contributions(
    model: nn.Module, layer: str, x: Tensor, x_ref: Tensor, target: Callable[[Any], Tensor]
) -> Tensor:
    """Return the signed contributions [N, K, C, R, S] of one convolution.

    Args:
        model: in eval mode; Captum knows modules only, each called once.
        layer: the convolution's name.
        x: images [N, ...].
        x_ref: references [N, ...].
        target: maps outputs to one number per image; it must not care how many images there are.
    """
    conv = model.get_submodule(layer)
    assert isinstance(conv, nn.Conv2d)
    multipliers = LayerDeepLift(_Explained(model, target), conv, multiply_by_inputs=False).attribute(x, x_ref)
    delta = _input_of(model, conv, x) - _input_of(model, conv, x_ref)
    weight = conv.weight.detach()
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    gradients = [
        conv2d_weight(delta[n : n + 1], list(weight.shape), multipliers[n : n + 1], *geometry)  # type: ignore[no-untyped-call]
        for n in range(len(x))
    ]
    return torch.stack(gradients).detach() * weight


def _input_of(model: nn.Module, conv: nn.Conv2d, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0]
