"""Random weights that behave like trained ones, for `bench.zoo`: live BatchNorm, no dead branch, zeros as asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_SPREAD = 0.2  # of a random scale around 1, and of a random shift around 0
# Of BatchNorm's scales: with 1, each residual branch adds as much as there is, and noise on the image grew 150-fold
# through RegNetY's blocks.
_DAMPING = 0.4
# A channel's variance is at least this share of the mean square over all channels: dividing by that of a nearly
# constant channel magnifies rounding. Without it MobileNetV3 itself differed by 2e-5 between float32 and float64, a
# ConvMixer with 0.3 by 4e-5, and with 1 by 5e-6.
_LEAST_VARIANCE = 1.0


def random_images(count: int, height: int, width: int) -> Tensor:
    """Return images [count, 3, height, width] in [0, 1] with large structures and noise.

    Of noise alone a global average is the same for every image.
    """
    coarse = torch.randn(count, 3, 4, 4)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return torch.sigmoid(smooth + 0.5 * torch.randn(count, 3, height, width))


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
            parameter.copy_(_near(1.0 if bool(parameter.flatten()[0] != 0) else 0.0, parameter))
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
    least = _LEAST_VARIANCE * float(x.square().mean()) or 1.0
    norm.running_var.copy_(x.var(1).clamp(min=least) * _near(1.0, norm.running_var))
    if isinstance(norm.weight, Tensor):  # torchvision's frozen BatchNorm keeps both as buffers
        norm.weight.copy_(_DAMPING * _near(1.0, norm.weight))
        norm.bias.copy_(_near(0.0, norm.bias))


def _set_scale(layer: Any, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
    """Center the outputs, as far as there is a bias, and divide them by their size."""
    channels = y.transpose(0, 1).flatten(1) if isinstance(layer, nn.Conv2d) else y.flatten(0, -2).T
    mean = channels.mean(1) if layer.bias is not None else torch.zeros(len(channels))
    centered = channels - mean[:, None]
    size = float(torch.maximum(centered.square().mean(), _LEAST_VARIANCE * channels.square().mean()).sqrt())
    if not size > 0:
        return None
    layer.weight.div_(size)
    if layer.bias is not None:
        shift = _near(0.0, mean) - mean / size
        layer.bias.div_(size).add_(shift)
        mean = -size * shift
    shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
    return (y - mean.view(shape)) / size


def _near(center: float, like: Tensor) -> Tensor:
    noise = torch.rand_like(like) if center else torch.randn_like(like)
    return center + _SPREAD * (2 * noise - 1 if center else noise)


def _convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]
