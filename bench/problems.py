"""What the benches run on: YOLOv3 with random weights pruned per layer by magnitude, and its layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.detection import MODELS, Detector
from prunekit.prune import apply_masks, masks_from_scores, prunable_layers, score_model

RATIOS = (0, 25, 50, 65, 75, 85, 90, 95, 99)


def pruned_detector(name: str, ratio: float, seed: int = 0) -> Detector:
    """Build a detector with random weights, eval mode, `ratio` percent of each layer's weights zero."""
    torch.manual_seed(seed)
    net = MODELS[name]().eval().requires_grad_(False)
    apply_masks(net, masks_from_scores(score_model(net, "magnitude"), ratio))
    return net


@dataclass(frozen=True)
class LayerProblem:
    """A convolution of a net, on the input that reaches it; `count` layers of the net have this shape."""

    conv: nn.Conv2d
    x: Tensor
    count: int

    @property
    def name(self) -> str:
        """Input, weight and stride in short."""
        return f"{list(self.x.shape)} * {list(self.conv.weight.shape)} / {self.conv.stride[0]}"

    @property
    def flops(self) -> int:
        """Two per multiply-add of the dense convolution."""
        p, q = (-(-size // stride) for size, stride in zip(self.x.shape[2:], self.conv.stride, strict=True))
        return 2 * self.conv.weight.numel() * p * q * self.x.shape[0]


def layer_problems(net: Detector, image_size: int) -> list[LayerProblem]:
    """List the distinct convolutions of `net` at one image, in the order in which they run."""
    seen: dict[tuple[object, ...], list[tuple[nn.Conv2d, Tensor]]] = {}

    def note(conv: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(conv, nn.Conv2d)
        key = (args[0].shape, conv.weight.shape, conv.stride)
        seen.setdefault(key, []).append((conv, args[0].clone()))

    hooks = [conv.register_forward_pre_hook(note) for conv in prunable_layers(net).values()]
    with torch.no_grad():
        net(torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)))
    for hook in hooks:
        hook.remove()
    return [LayerProblem(*layers[0], len(layers)) for layers in seen.values()]
