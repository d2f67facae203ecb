"""Random weights that behave like trained ones, for `bench.zoo`: live BatchNorm, no dead branch, zeros as asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_SPREAD = 0.2  # of a random scale around 1, and of a random shift around 0
_LEAST_VARIANCE = 1e-3


@torch.no_grad()
def make_sparse(model: nn.Module, sparsity: float) -> None:
    """Zero a share of the weights of every convolution but the first, which reads the image; each keeps one."""
    for conv in _convolutions(model)[1:]:
        weight = conv.weight
        keep = torch.rand(weight.shape) >= sparsity
        keep.view(-1)[torch.randint(weight.numel(), (1,))] = True
        weight.mul_(keep)


@torch.no_grad()
def drop_filters(model: nn.Module, share: float) -> None:
    """Zero a share of the filters of every convolution, drawn at random for each."""
    for conv in _convolutions(model):
        filters = len(conv.weight)
        conv.weight[torch.randperm(filters)[: int(share * filters)]] = 0.0


@torch.no_grad()
def enliven(model: nn.Module, x: Tensor) -> None:
    """Give every layer an output of about unit size, and every BatchNorm statistics and scales of its own.

    Untrained models are easy prey: their BatchNorms are identities, scales of residual branches are 0 or 1e-6, and
    without BatchNorm their activations fade to denormal numbers once most weights are zero. Parameters that are one
    constant become random; then the model runs once on `x`, and each convolution and BatchNorm is set by the input
    that reaches it.

    Args:
        model: In eval mode, its zeros in place.
        x: [N, 3, H, W].
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
            is_scale = parameter.dim() < 2 and bool(parameter.flatten()[0] != 0)
            parameter.copy_(_near(1.0 if is_scale else 0.0, parameter))
    seen: set[nn.Module] = set()
    hooks = [*_live(model, seen)]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()


def _live(model: nn.Module, seen: set[nn.Module]) -> list[Any]:
    def once(change: Callable[..., Any]) -> Callable[..., Any]:
        """Let a layer that several feature maps run through be set by the first."""

        def hook(module: nn.Module, *values: Any) -> Any:
            if module not in seen:
                seen.add(module)
                return change(module, *values)
            return None

        return hook

    norms = [module for module in model.modules() if isinstance(getattr(module, "running_var", None), Tensor)]
    # A subclass may normalize its weight, so that its output does not grow with it.
    scaled = [module for module in model.modules() if type(module) in (nn.Conv2d, nn.Linear)]
    return [
        *(norm.register_forward_pre_hook(once(_set_statistics)) for norm in norms),
        *(layer.register_forward_hook(once(_set_scale)) for layer in scaled),
    ]


def _set_statistics(norm: Any, args: tuple[Tensor, ...]) -> None:
    x = args[0].transpose(0, 1).flatten(1)  # [C, elements]
    norm.running_mean.copy_(x.mean(1) + _near(0.0, norm.running_mean) * x.std())
    norm.running_var.copy_(x.var(1).clamp(min=_LEAST_VARIANCE) * _near(1.0, norm.running_var))
    if isinstance(norm.weight, Tensor):  # torchvision's frozen BatchNorm keeps both as buffers
        norm.weight.copy_(_near(1.0, norm.weight))
        norm.bias.copy_(_near(0.0, norm.bias))


def _set_scale(layer: Any, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
    size = float(y.std())
    if not size > 0:
        return None
    layer.weight.div_(size)
    if layer.bias is not None:
        layer.bias.div_(size)
    return y / size


def _near(center: float, like: Tensor) -> Tensor:
    noise = torch.rand_like(like) if center else torch.randn_like(like)
    return center + _SPREAD * (2 * noise - 1 if center else noise)


def _convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]
