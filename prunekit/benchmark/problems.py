"""What the benches run on: nets with random weights, pruned per layer by magnitude, and their layers one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from prunekit.classification import mobilenetv2, resnet50, vgg16
from prunekit.detection import MODELS
from prunekit.prune import MaskRule, conv_groups, prunable_layers

#: Pruning ratios in percent.
RATIOS = (0.0, 25.0, 50.0, 65.0, 75.0, 85.0, 90.0, 95.0, 99.0)
UNSTRUCTURED = "unstructured"


@dataclass(frozen=True)
class Net:
    """A net of the list.

    Attributes:
        build: makes it with random weights, at a share `width` of its channels.
        image_size: side of its usual input in pixels.
    """

    build: Callable[..., nn.Module]
    image_size: int


NETS: dict[str, Net] = {
    **{name: Net(build, 416) for name, build in MODELS.items()},
    "resnet50": Net(partial(resnet50, normalized=False), 224),
    "vgg16": Net(vgg16, 224),
    "mobilenetv2": Net(partial(mobilenetv2, normalized=False), 224),
}


@dataclass(frozen=True)
class Problem:
    """Something to run at any pruning ratio: a net, or one of its layers on the input that reaches it.

    Attributes:
        x: The input, [1, C, H, W].
        build: Makes the module with so many percent of each layer's weights zero.
        layer: What the layer is, in words; None for a whole net.
        count: How many layers of the net have this shape.
    """

    x: Tensor
    build: Callable[[float], nn.Module]
    layer: str | None = None
    count: int = 1


def pruned_net(name: str, ratio: float, width: float = 1.0, seed: int = 0, structure: str = UNSTRUCTURED) -> nn.Module:
    """Build a net of `NETS` with random weights, in eval mode, `ratio` percent of each layer's weights zero."""
    torch.manual_seed(seed)
    return prune_by_magnitude(NETS[name].build(width=width).eval().requires_grad_(False), ratio, structure)


@torch.no_grad()
def prune_by_magnitude(net: nn.Module, ratio: float, structure: str = UNSTRUCTURED) -> nn.Module:
    """Zero the smallest `ratio` percent of each convolution's and linear layer's weights, and scale the rest up.

    Of a structure of `BLOCKS`, whole blocks.

    Without the scaling, activations at 99 % would shrink from layer to layer into denormal numbers, which processors
    handle slowly: a trained net's do not. Linear layers are pruned too, since they hold most of a VGG's weights.
    """
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    rule = MaskRule(ratio, structure, conv_groups=conv_groups(net))
    masks = rule({name: layer.weight.reshape(*layer.weight.shape[:2], -1, 1) for name, layer in layers.items()})
    for name, layer in layers.items():
        norm, mask = layer.weight.norm(), masks[name].reshape(layer.weight.shape)
        layer.weight.masked_fill_(~mask, 0.0).mul_(norm / layer.weight.norm().clamp(min=1e-30))
    return net


def whole_net(name: str, image_size: int, width: float = 1.0, structure: str = UNSTRUCTURED) -> Problem:
    """Return a net on one random image, [1, 3, image_size, image_size]."""
    return Problem(random_image(image_size), partial(pruned_net, name, width=width, structure=structure))


def layer_problems(name: str, image_size: int, width: float = 1.0, structure: str = UNSTRUCTURED) -> list[Problem]:
    """List the distinct convolutions of a net on one random image, in the order in which they run."""
    net = pruned_net(name, 0.0, width)
    seen: dict[tuple[object, ...], list[tuple[nn.Conv2d, Tensor]]] = {}

    def note(conv: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(conv, nn.Conv2d)
        key = (args[0].shape, conv.weight.shape, conv.stride)
        layers = seen.setdefault(key, [])
        layers.append((conv, args[0].clone() if not layers else args[0]))

    hooks = [conv.register_forward_pre_hook(note) for conv in prunable_layers(net).values()]
    with torch.no_grad():
        net(random_image(image_size))
    for hook in hooks:
        hook.remove()
    return [_layer_problem(*layers[0], len(layers), structure) for layers in seen.values()]


def random_image(size: int) -> Tensor:
    """Return the image that every bench looks at: [1, 3, size, size], uniform in [0, 1]."""
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def _layer_problem(conv: nn.Conv2d, x: Tensor, count: int, structure: str) -> Problem:
    name = f"{'×'.join(map(str, x.shape))} * {'×'.join(map(str, conv.weight.shape))} / {conv.stride[0]}"

    def build(ratio: float) -> nn.Module:
        return prune_by_magnitude(nn.Sequential(copy.deepcopy(conv)), ratio, structure)

    return Problem(x, build, name, count)
