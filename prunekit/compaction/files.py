"""Compacted and accelerated models as files: what `save` wrote, `load` runs in any process, without pickle.

A model of a class that is known to files comes back as that class, with the channels that its layers had. Any other
comes back as the program that torch.export made of it, without the code that built it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunekit import documents
from prunekit.compaction.certificate import Certificate
from prunekit.compaction.compact import CompactionResult
from prunekit.compaction.graph_file import ProgramModel, program_document, program_tensors
from prunekit.compaction.program import export_flat_any_size
from prunekit.engine.artifact import SAVED_MODEL, damage_told
from prunekit.engine.signature import Signature
from prunekit.errors import InputError
from prunekit.graph.calls import Call
from prunekit.nn import saving as accelerated

#: What files of compacted models say they are.
COMPACTED_FORMAT = "prunekit compacted model"
# 1 had no digest.
_VERSION, _VERSIONS = 2, (1, 2)


@dataclass(frozen=True)
class SavedClass:
    """A class of models that files bring back as such.

    Attributes:
        describe: Returns what `build` needs beside the tensors, JSON-able, or None where it would not give the model
            back.
        build: Returns the model, in eval mode, of such a description and a state dict; a file's may hold anything, and
            the KeyError, TypeError, ValueError, AttributeError or RuntimeError that it ends in is told as a damage.
    """

    describe: Callable[[nn.Module], dict[str, Any] | None]
    build: Callable[[Mapping[str, Any], Mapping[str, Tensor]], nn.Module]


#: By what files call them; whoever has such a class adds it.
SAVED_CLASSES: dict[str, SavedClass] = {}


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
    with accelerated.checked_path(path):
        tensors, spec = _describe(model)
        document = {"format": COMPACTED_FORMAT, "version": _VERSION, **spec, "certificate": model.certificate.to_json()}
        documents.write(path, tensors, document)


def load(path: str | Path) -> nn.Module:
    """Read a model that `save` wrote, in eval mode, ready to run.

    A compacted model's `certificate` is an attribute of it.

    Raises:
        InputError: There is no such file, or it is another one, or damaged.
        RuntimeError: An accelerated model, and prunekit's compiled extension is not there.
    """
    content = documents.read(path, SAVED_MODEL)
    if content.format != COMPACTED_FORMAT:
        return accelerated.load_content(content, path)
    version = content.document.get("version")
    if version not in _VERSIONS:
        raise InputError(f"Expected {COMPACTED_FORMAT!r} version {_VERSION} in {path}, got {version}.")
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
    for kind, saved in SAVED_CLASSES.items():
        spec = saved.describe(model)
        if spec is not None:
            return model.state_dict(), {"kind": kind, **spec}
    example = Call(result.example, result.example_kwargs)
    program, outputs, is_size_free = export_flat_any_size(model, example)
    signature, tensors = Signature.of_call(model.forward, example.args, example.kwargs)
    signature = replace(signature, results=outputs.without_tensors())
    document = program_document(program, tensors, is_size_free, signature)
    return program_tensors(program), {"kind": "program", "program": document}


def _build(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    if document["kind"] == "program":
        return ProgramModel(document["program"], tensors)
    return SAVED_CLASSES[document["kind"]].build(document, tensors)
