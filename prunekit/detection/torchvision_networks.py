"""torchvision's detectors as networks of tensors: normalization, backbone and heads, without what makes boxes of them.

Each takes images [N, 3, H, W] in [0, 1], H and W multiples of 32, and returns a tuple of tensors.
Parameters have torchvision's own names, so that its state dicts fit. Nothing is downloaded: weights are random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection

Maps = tuple[Tensor, ...]


class Network(nn.Module):
    """The normalization and the backbone of one of torchvision's detectors."""

    backbone: nn.Module
    head: Any
    mean: Tensor
    std: Tensor

    def __init__(self, net: Any, head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = net.backbone
        if head is not None:
            self.head = head
        for name in ("mean", "std"):
            values = torch.tensor(getattr(net.transform, f"image_{name}"))[:, None, None]  # [3, 1, 1]
            self.register_buffer(name, values, persistent=False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the maps of images x [N, 3, H, W], the finest first."""
        return list(self.backbone((x - self.mean) / self.std).values())


class RetinaNet(Network):
    """Returns class logits [N, A·C, H, W] of five levels, then box offsets [N, A·4, H, W] of five."""

    def forward(self, x: Tensor) -> Maps:
        """Return the heads' maps."""
        classify, regress = self.head.classification_head, self.head.regression_head
        maps = self.features(x)
        classes = [classify.cls_logits(classify.conv(m)) for m in maps]
        return (*classes, *(regress.bbox_reg(regress.conv(m)) for m in maps))


class Fcos(Network):
    """Returns class logits [N, C, H, W], distances to a box's sides [N, 4, H, W], and centerness [N, 1, H, W]."""

    def forward(self, x: Tensor) -> Maps:
        """Return the heads' maps, five levels each."""
        classify, regress = self.head.classification_head, self.head.regression_head
        maps = self.features(x)
        classes = [classify.cls_logits(classify.conv(m)) for m in maps]
        shared = [regress.conv(m) for m in maps]
        distances = [nn.functional.relu(regress.bbox_reg(m)) for m in shared]
        return (*classes, *distances, *(regress.bbox_ctrness(m) for m in shared))


class Ssd(Network):
    """Returns class logits [N, A·(1+C), H, W] of six levels, background first, then box offsets [N, A·4, H, W]."""

    def forward(self, x: Tensor) -> Maps:
        """Return the heads' maps."""
        maps = self.features(x)
        heads = (self.head.classification_head.module_list, self.head.regression_head.module_list)
        return tuple(layer(m) for head in heads for layer, m in zip(head, maps, strict=True))


class FasterRcnn(Network):
    """Returns four maps of features, five of objectness [N, A, H, W], five of box offsets, and the box head's weights.

    With the weights, everything behind the proposals is a function of outputs alone, as attacks and losses need it.
    """

    def __init__(self, net: Any) -> None:
        super().__init__(net)
        self.rpn = nn.ModuleDict({"head": net.rpn.head})
        heads = {"box_head": net.roi_heads.box_head, "box_predictor": net.roi_heads.box_predictor}
        self.roi_heads = nn.ModuleDict(heads)

    def forward(self, x: Tensor) -> Maps:
        """Return the maps and the weights of four linear layers, a weight and a bias each."""
        maps = self.features(x)
        objectness, offsets = self.rpn["head"](maps)
        return (*maps[:-1], *objectness, *offsets, *self.roi_heads.parameters())


#: By family: torchvision's function, what makes the network of its result, and whether class 0 is the background.
NETWORKS: dict[str, tuple[str, Callable[[Any], Network], bool]] = {
    "fasterrcnn-resnet50-fpn": ("fasterrcnn_resnet50_fpn", FasterRcnn, True),
    "retinanet-resnet50-fpn": ("retinanet_resnet50_fpn", lambda net: RetinaNet(net, net.head), False),
    "fcos-resnet50-fpn": ("fcos_resnet50_fpn", lambda net: Fcos(net, net.head), False),
    "ssd300-vgg16": ("ssd300_vgg16", lambda net: Ssd(net, net.head), True),
    "ssdlite320-mobilenet-v3-large": ("ssdlite320_mobilenet_v3_large", lambda net: Ssd(net, net.head), True),
}


def build_torchvision(name: str, num_classes: int) -> Any:
    """Build torchvision's own detector of a family, with random weights."""
    function, _, has_background = NETWORKS[name]
    build = getattr(detection, function)
    return build(weights=None, weights_backbone=None, num_classes=num_classes + has_background)


def build_network(name: str, num_classes: int) -> Network:
    """Build the network of a family, with random weights."""
    return NETWORKS[name][1](build_torchvision(name, num_classes))
