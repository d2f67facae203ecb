"""The families of classifiers by name; each is built from `num_classes`, `width`, `small_images` and `normalized`."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from prunekit.classification.mobilenet import mobilenetv2
from prunekit.classification.mobilevit import mobilevit_s
from prunekit.classification.resnet import resnet18, resnet20, resnet50, wrn28_4
from prunekit.classification.vgg import vgg16_bn

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet50": resnet50,
    "wrn28-4": wrn28_4,
    "vgg16-bn": vgg16_bn,
    "mobilenetv2": mobilenetv2,
    "mobilevit-s": mobilevit_s,
}
