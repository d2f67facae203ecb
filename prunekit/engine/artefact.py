"""A graph as a file: safetensors for the numbers, JSON in its header for the rest; no pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunekit.engine.filters import ConvChoice
from prunekit.engine.graph import Activation, Graph, Node, SparseWeight
from prunekit.engine.size_rule import SizeRule
from prunekit.errors import InputError
from prunekit.files import atomic_path

_FORMAT, _VERSION = "prunekit accelerated model", 1
_ACTIVATIONS = ("before", "after")


def save_graph(
    graph: Graph, choices: Mapping[str, ConvChoice], example: list[list[int]], lanes: int, path: str | Path
) -> None:
    """Write a graph, how its convolutions were cut on this machine, and the shapes it was traced with."""
    cuts = {name: asdict(choice) for name, choice in choices.items()}
    write_document(graph, _FORMAT, {"example": example, "lanes": lanes, "choices": cuts}, path)


def load_graph(path: str | Path) -> tuple[Graph, dict[str, ConvChoice], list[list[int]], int]:
    """Read what `save_graph` wrote: graph, choices, example shapes, lanes that the choices are for.

    Raises:
        InputError: there is no such file, or it is not one of ours, or damaged.
    """
    graph, document = read_document(path, _FORMAT)
    with damage_told(path):
        choices = {name: _choice(words) for name, words in document["choices"].items()}
        return graph, choices, document["example"], int(document["lanes"])


def write_document(graph: Graph, format: str, more: Mapping[str, Any], path: str | Path) -> None:
    """Write a compressed graph, whose tensors are on the CPU, and what else JSON holds, as a file of this format."""
    tensors = {f"constant/{name}": tensor.contiguous().clone() for name, tensor in graph.constants.items()}
    for name, weight in graph.weights.items():
        tensors[f"bits/{name}"], tensors[f"values/{name}"] = weight.bits, weight.values
    document = {
        "format": format,
        "version": _VERSION,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "output_spec": graph.output_spec,
        "nodes": [asdict(node) for node in graph.nodes],
        "sizes": {name: list(size) for name, size in graph.sizes.items()},
        "is_size_free": graph.is_size_free,
        "size_rule": None if graph.rule is None else graph.rule.to_json(),
        "split_batch": graph.split_batch,
        "shapes": {name: list(weight.shape) for name, weight in graph.weights.items()},
        **more,
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"prunekit": json.dumps(document)})


def format_of(path: str | Path) -> str:
    """Return which of our formats a file has; "" for others.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    return str(_read(Path(path), with_tensors=False)[0].get("format", ""))


def read_document(path: str | Path, format: str) -> tuple[Graph, dict[str, Any]]:
    """Read what `write_document` wrote: the graph, and the whole document.

    Raises:
        InputError: there is no such file, or it is not one of this format, or damaged.
    """
    document, tensors = _read(Path(path), with_tensors=True)
    if document.get("format") != format or document.get("version") != _VERSION:
        found = f"{document.get('format')!r} version {document.get('version')}"
        raise InputError(f"expected {format!r} version {_VERSION} in {path}, found {found}.")
    with damage_told(path):
        graph = Graph(
            document["inputs"],
            [_node(entry) for entry in document["nodes"]],
            document["outputs"],
            {name.removeprefix("constant/"): t for name, t in tensors.items() if name.startswith("constant/")},
            document["output_spec"],
            {name: (int(c), int(h), int(w)) for name, (c, h, w) in document["sizes"].items()},
            weights={
                name: _weight(tuple(shape), tensors[f"bits/{name}"], tensors[f"values/{name}"])
                for name, shape in document["shapes"].items()
            },
            is_size_free=bool(document["is_size_free"]),
            rule=SizeRule.from_json(document["size_rule"]) if document.get("size_rule") else None,
            split_batch=int(document.get("split_batch", 0)),
        )
    return graph, document


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise InputError(f"expected a model saved by prunekit.save, but there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys() if with_tensors else []
            tensors = {name: file.get_tensor(name) for name in names}
        document = json.loads(metadata.get("prunekit", "{}"))
        if not isinstance(document, dict):
            raise ValueError("its header is no object")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"expected a model saved by prunekit.save, but {path} cannot be read ({error}).") from error
    return document, tensors


@contextmanager
def damage_told(path: str | Path) -> Iterator[None]:
    """Turn what a damaged file leads to, within the block, into an InputError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"the model in {path} is damaged ({type(error).__name__}: {error}).") from error


def _node(entry: dict[str, Any]) -> Node:
    attributes = dict(entry["attributes"])
    for key in _ACTIVATIONS:
        if key in attributes:
            attributes[key] = Activation(**attributes[key])
    return Node(entry["name"], entry["op"], list(entry["inputs"]), attributes, entry["layer"])


def _choice(words: dict[str, Any]) -> ConvChoice:
    choice = ConvChoice(**words)
    if not choice.is_sound:
        raise ValueError(f"{words} is no choice")
    return choice


def _weight(shape: tuple[int, ...], bits: Tensor, values: Tensor) -> SparseWeight:
    weight = SparseWeight(shape, bits, values)
    kept = int(np.unpackbits(bits.numpy()).sum())
    if bits.numel() != -(-weight.size // 8) or kept != values.numel():
        raise ValueError(f"a weight of shape {list(shape)} has {values.numel()} values and {kept} kept bits")
    return weight
