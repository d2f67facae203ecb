"""Compacted detectors as files: a detector of prunekit's own comes back as its class, with the channels that stayed.

`save` and `load` are those of `prunekit.compaction`, which know detectors once this module is imported, as the task
does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from prunekit.compaction.files import SAVED_CLASSES, SavedClass, load, save
from prunekit.detection.yolov3 import MODELS, Detector, GivenAnchors
from prunekit.dry_run import without_memory

__all__ = ["load", "save"]

# Pixels of the image on which a detector is run dry: twice what its deepest map is smaller by.
_DRY_SIDE = 64


def _describe(model: nn.Module) -> dict[str, Any] | None:
    if not isinstance(model, Detector) or model.name not in MODELS:
        return None
    spec = {"model": model.name, "num_classes": model.num_classes, "anchors": model.anchors, "layers": _edits(model)}
    return spec if _is_built_alike(model, spec) else None


def _is_built_alike(model: nn.Module, spec: Mapping[str, Any]) -> bool:
    """Tell whether the description gives the model back, module for module: someone may have changed the detector."""
    try:
        built = _build(spec, model.state_dict())
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        return False
    theirs = {name: type(module) for name, module in built.named_modules()}
    return theirs == {name: type(module) for name, module in model.named_modules()}


def _edits(model: nn.Module) -> dict[str, dict[str, int | bool]]:
    """Return what each convolution has become."""
    return {
        name: {
            "in_channels": conv.in_channels,
            "out_channels": conv.out_channels,
            "groups": conv.groups,
            "bias": conv.bias is not None,
        }
        for name, conv in model.named_modules()
        if isinstance(conv, nn.Conv2d)
    }


def _build(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    # Files of earlier versions do not say anchors, which were the usual ones or are lost.
    model = _on_meta(document["model"], int(document["num_classes"]), document.get("anchors"))
    layers: Mapping[str, Mapping[str, Any]] = document["layers"]
    for name, edit in layers.items():
        conv = model.get_submodule(name)
        if not isinstance(conv, nn.Conv2d):
            raise ValueError(f"{name} is no convolution")
        conv.in_channels, conv.out_channels, conv.groups = edit["in_channels"], edit["out_channels"], edit["groups"]
        if conv.groups < 1:
            raise ValueError(f"{name} has {conv.groups} groups")
        shape = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
        conv.weight = nn.Parameter(torch.empty(shape, device="meta"))
        conv.bias = nn.Parameter(torch.empty(shape[0], device="meta")) if edit["bias"] else None
    for name, module in model.named_modules():
        if isinstance(module, _NormBase):
            _resize(module, len(tensors[f"{name}.running_mean"]))
    model.load_state_dict(tensors, assign=True)
    if any(tensor.dtype != torch.float32 for tensor in model.state_dict().values() if tensor.is_floating_point()):
        raise ValueError("a detector's weights are float32")
    with without_memory():
        model.eval()(torch.empty(1, 3, _DRY_SIDE, _DRY_SIDE))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def _resize(norm: _NormBase, width: int) -> None:
    norm.num_features = width
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(torch.empty(width, device="meta")))
    for name in ("running_mean", "running_var"):
        norm.register_buffer(name, torch.empty(width, device="meta"))


def _on_meta(name: str, num_classes: int, anchors: GivenAnchors | None) -> Detector:
    with torch.device("meta"):
        return MODELS[name](num_classes=num_classes, anchors=anchors)


SAVED_CLASSES["detector"] = SavedClass(_describe, _build)
