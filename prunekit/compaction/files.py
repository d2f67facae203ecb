"""Compacted and accelerated models as files: what `save` wrote, `load` runs in any process, without pickle.

A compacted detector of prunekit's own comes back as its class, with the channels that its layers had. Any other
model comes back as the program that torch.export made of it, without the code that built it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from prunekit import documents
from prunekit.compaction.certificate import Certificate
from prunekit.compaction.compact import CompactionResult
from prunekit.compaction.graph_file import ProgramModel, program_document, program_tensors
from prunekit.compaction.program import export_flat_any_size
from prunekit.detection.yolov3 import MODELS, Detector
from prunekit.dry_run import without_memory
from prunekit.engine.artifact import SAVED_MODEL, damage_told
from prunekit.engine.signature import Signature
from prunekit.errors import InputError
from prunekit.graph.calls import Call
from prunekit.nn import saving as accelerated

_FORMAT = "prunekit compacted model"
# Pixels of the image on which a detector is run dry: twice what its deepest map is smaller by.
_DRY_SIDE = 64
# 1 had no digest.
_VERSION, _VERSIONS = 2, (1, 2)


def save(model: nn.Module | CompactionResult, path: str | Path) -> None:
    """Write a compaction's result or an accelerated model to one safetensors file, atomically.

    Args:
        model: What `compact` returned, or a model that `accelerate` put on the engine as a whole.
        path: The file; missing folders are made, a file of that name is replaced.

    Raises:
        InputError: The model is of another kind, cannot be exported, or no file can be written at `path`.
    """
    if not isinstance(model, CompactionResult):
        accelerated.save(model, path)
        return
    if Path(path).is_dir():
        raise InputError(f"save: expected a file to write, got a folder: {path}.")
    tensors, spec = _describe(model)
    document = {"format": _FORMAT, "version": _VERSION, **spec, "certificate": model.certificate.to_json()}
    try:
        documents.write(path, tensors, document)
    except OSError as error:
        raise InputError(f"save: expected a place for a file, but {path} cannot be written ({error}).") from error


def load(path: str | Path) -> nn.Module:
    """Read a model that `save` wrote, in eval mode, ready to run.

    A compacted model's `certificate` is an attribute of it.

    Raises:
        InputError: There is no such file, or it is another one, or damaged.
        RuntimeError: An accelerated model, and prunekit's compiled extension is not there.
    """
    content = documents.read(path, SAVED_MODEL)
    if content.format != _FORMAT:
        return accelerated.load_content(content, path)
    version = content.document.get("version")
    if version not in _VERSIONS:
        raise InputError(f"Expected {_FORMAT!r} version {_VERSION} in {path}, got {version}.")
    with damage_told(path):
        if version != 1 and not content.has_digest:
            raise ValueError("its digest is missing")
        model = _build(content.document, content.tensors)
        model.certificate = Certificate.from_json(content.document["certificate"])  # type: ignore[assignment]
        return model


def _describe(result: CompactionResult) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    model = result.model
    if isinstance(model, ProgramModel):
        raise InputError("save: expected a model that was compacted now, got one that was loaded from a file.")
    if isinstance(model, Detector) and model.name in MODELS:
        spec = {"kind": "detector", "model": model.name, "num_classes": model.num_classes, "layers": _edits(model)}
        if _is_built_alike(model, spec):
            return model.state_dict(), spec
    example = Call(result.example, result.example_kwargs)
    program, outputs, is_size_free = export_flat_any_size(model, example)
    signature, tensors = Signature.of_call(model.forward, example.args, example.kwargs)
    signature = replace(signature, results=outputs.without_tensors())
    document = program_document(program, tensors, is_size_free, signature)
    return program_tensors(program), {"kind": "program", "program": document}


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
    if document["kind"] == "program":
        return ProgramModel(document["program"], tensors)
    model = _on_meta(document["model"], int(document["num_classes"]))
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


def _on_meta(name: str, num_classes: int) -> Detector:
    with torch.device("meta"):
        return MODELS[name](num_classes=num_classes)
