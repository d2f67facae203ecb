"""The families of torchvision's detectors, known by name without torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from prunekit.detection.torchvision_task import DEFAULT_CLASSES, TorchvisionTask
from prunekit.extras import check_extra
from prunekit.task import register_model, register_task

FAMILIES = (
    "fasterrcnn-resnet50-fpn",
    "retinanet-resnet50-fpn",
    "fcos-resnet50-fpn",
    "ssd300-vgg16",
    "ssdlite320-mobilenet-v3-large",
)


def _build(name: str, num_classes: int = DEFAULT_CLASSES) -> nn.Module:
    check_extra("torchvision", f"the model {name}")
    from prunekit.detection.torchvision_networks import build_network

    return build_network(name, num_classes)


def _family(name: str) -> Callable[..., nn.Module]:
    return partial(_build, name)


register_task("torchvision-detection", TorchvisionTask)
for _name in FAMILIES:
    register_model(_name, _family(_name), "torchvision-detection")
