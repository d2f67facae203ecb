"""The models of `bench.zoo`: by name, how each is built with random weights, and on images of which size it runs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from prunekit.errors import InputError

_PACKAGES = ("torchvision", "timm")
_CLASSES = 21  # of segmentation and detection


@dataclass(frozen=True)
class ZooModel:
    """A model of somebody else's.

    Attributes:
        source: The package that it is from.
        build: Makes it with random weights.
        size: Height and width of the example's square images, in pixels.
        parts: Submodules in front of a discontinuous end (top-k, non-maximum suppression): where rounding alone changes
            what the model returns, their outputs are compared instead of the model's.
    """

    source: str
    build: Callable[[], nn.Module]
    size: int
    parts: tuple[str, ...] = ()


#: By the name of the row; `load_registry` reads one from any module.
Registry = Mapping[str, ZooModel]


def load_registry(where: str) -> Registry:
    """Return the registry called "module:attribute".

    Raises:
        InputError: There is no such module or attribute, or torchvision or timm is not installed.
    """
    if where == REGISTRY:
        require_packages()
    module, _, attribute = where.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"Expected --registry to name a module and its mapping, got {where!r} ({error}).") from error
    if not isinstance(found, Mapping) or not all(isinstance(model, ZooModel) for model in found.values()):
        raise InputError(f"Expected --registry to name a mapping of names to ZooModels, got {where!r}.")
    return found


def require_packages() -> None:
    """Raise an InputError where torchvision or timm is not installed."""
    absent = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if absent:
        raise InputError(
            f"Expected torchvision and timm, got no {' and no '.join(absent)} in this Python environment: "
            "pip install 'prunekit[zoo]'."
        )


def _timm(name: str, **arguments: Any) -> nn.Module:
    model: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False, **arguments)
    return model


def _torchvision(module: str, name: str, *parts: str, **arguments: Any) -> nn.Module:
    """Call a function of a module of torchvision.models, and return what it makes or a submodule of that."""
    function = getattr(importlib.import_module(f"torchvision.models{module}"), name)
    model: nn.Module = function(weights=None, **arguments)
    return model.get_submodule(parts[0]) if parts else model


def _classifiers() -> dict[str, ZooModel]:
    slow_to_draw = {"inception_v3": {"init_weights": False}, "googlenet": {"init_weights": False}}
    return {
        name: ZooModel("torchvision", partial(_torchvision, "", name, **slow_to_draw.get(name, {})), size)
        for size, names in _CLASSIFIERS.items()
        for name in names.split()
    }


def _segmenters() -> dict[str, ZooModel]:
    arguments = {"weights_backbone": None, "num_classes": _CLASSES}
    return {
        name: ZooModel("torchvision", partial(_torchvision, ".segmentation", name, **arguments), 160)
        for name in ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
    }


def _detectors() -> dict[str, ZooModel]:
    found = {}
    for name, (head, resizes) in _DETECTORS.items():
        arguments: dict[str, Any] = {"weights_backbone": None, "num_classes": _CLASSES, "detections_per_img": 20}
        if name.startswith("fasterrcnn"):
            arguments = {"weights_backbone": None, "num_classes": _CLASSES, "box_detections_per_img": 20}
        if resizes:
            arguments |= {"min_size": _DETECTOR_SIZE, "max_size": _DETECTOR_SIZE}
        build = partial(_torchvision, ".detection", name, **arguments)
        backbone = partial(_torchvision, ".detection", name, "backbone", **arguments)
        found[name] = ZooModel("torchvision", build, _DETECTOR_SIZE, ("backbone", head))
        found[f"{name}.backbone"] = ZooModel("torchvision", backbone, _DETECTOR_SIZE if resizes else 320)
    return found


def _of_timm() -> dict[str, ZooModel]:
    return {
        f"timm.{name}": ZooModel("timm", partial(_timm, name), size)
        for size, names in _TIMM.items()
        for name in names.split()
    }


# By the size that they are run at: transformers and what has tables of positions take no other.
_CLASSIFIERS = {
    160: "vgg16 wide_resnet50_2 convnext_tiny",
    192: "alexnet resnet18 resnet50 resnext50_32x4d densenet121 inception_v3 googlenet squeezenet1_1 mobilenet_v2 "
    "mobilenet_v3_small mobilenet_v3_large mnasnet1_0 efficientnet_b0 efficientnet_v2_s regnet_y_400mf regnet_x_400mf "
    "shufflenet_v2_x1_0",
    224: "swin_t",
}
_DETECTOR_SIZE = 224
# By name: the submodule behind the backbone whose outputs are continuous, and whether the images' size can be set.
_DETECTORS = {
    "fasterrcnn_resnet50_fpn": ("rpn.head", True),
    "fasterrcnn_mobilenet_v3_large_320_fpn": ("rpn.head", True),
    "retinanet_resnet50_fpn": ("head", True),
    "fcos_resnet50_fpn": ("head", True),
    "ssd300_vgg16": ("head", False),
    "ssdlite320_mobilenet_v3_large": ("head", False),
}
_TIMM = {
    160: "convmixer_1024_20_ks9_p14 xception41 inception_v4 tresnet_m dm_nfnet_f0 darknet53 mobilevit_s",
    192: "resnetv2_50 resnet26d cspdarknet53 cs3darknet_s dla34 hrnet_w18_small repvgg_b0 vovnet39a ese_vovnet19b_dw "
    "mobilenetv4_conv_small tf_efficientnet_b0 tf_efficientnetv2_b0 seresnet50 res2net50_26w_4s resnest14d "
    "skresnet18 ghostnet_100 repghostnet_100 mobileone_s0 ecaresnet26t fastvit_t8 edgenext_x_small "
    "eca_nfnet_l0 selecsls42b hardcorenas_a fbnetc_100 spnasnet_100 mixnet_s lcnet_050 tinynet_a semnasnet_100 "
    "rexnet_100 regnetx_002 gernet_s dpn68 seresnext26d_32x4d gcresnet33ts starnet_s1 hgnetv2_b0 repvit_m0_9 "
    "efficientnet_lite0 poolformer_s12",
    224: "pit_ti_224 levit_128s efficientformerv2_s0 efficientvit_b0 coatnet_nano_rw_224",
    256: "halonet26t bat_resnext26ts",
}

REGISTRY = "bench.zoo_models:MODELS"
MODELS: Registry = {**_classifiers(), **_segmenters(), **_detectors(), **_of_timm()}
