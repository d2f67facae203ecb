"""A graph as a file: safetensors for the numbers, JSON in its header for the rest; no pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.documents import Content
from prunekit.engine.activations import Activation
from prunekit.engine.filters import ConvChoice
from prunekit.engine.graph import Graph, Node, Quantization, SparseWeight
from prunekit.engine.program import operator_of
from prunekit.engine.size_rule import SizeRule
from prunekit.engine.validation import check_examples, check_graph, check_sizes
from prunekit.errors import InputError, first_line

#: What files of accelerated models say they are; `GPU_FORMAT` for a GPU.
CPU_FORMAT, GPU_FORMAT = "prunekit accelerated model", "prunekit accelerated GPU model"
#: What the message says was expected where a file is none of ours.
SAVED_MODEL = "a model saved by prunekit.save"
# 1 had no digest and no dtypes of inputs.
_VERSION, _VERSIONS = 2, (1, 2)
_ACTIVATIONS = ("before", "after")
_QUANTIZATIONS = ("input", "residual", "output")
_VALUE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
# What reading JSON of any content as a graph may raise.
_DAMAGES = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError, OverflowError, RecursionError)


def graph_content(graph: Graph, format: str, more: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON document that a file of a compressed graph holds.

    Args:
        graph: its operators are those that a file may call.
        format: what the file says it is.
        more: what else the document holds.

    Raises:
        InputError: the graph calls an operator that a file may not call.
    """
    for node in graph.nodes:
        if not node.is_native:
            operator_of(node.attributes["target"])
    tensors = {f"constant/{name}": tensor for name, tensor in graph.constants.items()}
    for name, weight in graph.weights.items():
        tensors[f"bits/{name}"], tensors[f"values/{name}"] = weight.bits, weight.values
    return tensors, {
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


def choices_document(choices: Mapping[str, ConvChoice]) -> dict[str, Any]:
    """Return JSON of how convolutions were cut."""
    return {name: asdict(choice) for name, choice in choices.items()}


def choices_of(document: Mapping[str, Any]) -> dict[str, ConvChoice]:
    """Undo `choices_document`.

    Raises:
        KeyError, TypeError, ValueError: the document's "choices" are none.
    """
    return {str(name): _choice(words) for name, words in document["choices"].items()}


def check_format(content: Content, format: str, path: object) -> None:
    """Check that a file is of a format, and of a version that is known; `path` is what the message calls it.

    Raises:
        InputError: it is not.
    """
    version = content.document.get("version")
    if content.format != format or version not in _VERSIONS:
        found = f"{content.format!r} version {version!r}"
        raise InputError(f"Expected {format!r} version {_VERSION} in {path}, got {found}.")


def read_graph(content: Content, shapes: Callable[[Any], Any]) -> tuple[Graph, list[list[int]]]:
    """Return the graph of a file of a known format, checked whole, and the shapes of the example.

    Args:
        content: of the file.
        shapes: returns the shapes of what the document has as "example".

    Raises:
        InputError: the graph calls an operator that a file may not call.
        KeyError, TypeError, ValueError, AttributeError: the graph is damaged; `damage_told` turns it into a sentence.
    """
    document, tensors = content.document, content.tensors
    if document["version"] != 1 and not content.has_digest:
        raise ValueError("its digest is missing")
    graph = Graph(
        _names(document["inputs"]),
        [_node(entry) for entry in document["nodes"]],
        _names(document["outputs"]),
        {name.removeprefix("constant/"): t for name, t in tensors.items() if name.startswith("constant/")},
        document["output_spec"],
        {name: (c, h, w) for name, (c, h, w) in document["sizes"].items()},
        weights={
            name: _weight(shape, tensors[f"bits/{name}"], tensors[f"values/{name}"])
            for name, shape in document["shapes"].items()
        },
        is_size_free=_flag(document["is_size_free"]),
        rule=SizeRule.from_json(document["size_rule"]) if document.get("size_rule") else None,
        split_batch=document.get("split_batch", 0),
    )
    example = check_examples(graph, shapes(document["example"]))
    check_graph(graph.at(example))
    check_sizes(graph, example)
    return graph, example


def _names(words: object) -> list[str]:
    if not isinstance(words, list):
        raise ValueError("its inputs or outputs are no list")
    return list(words)


def _flag(word: object) -> bool:
    if not isinstance(word, bool):
        raise ValueError(f"{word!r} is neither true nor false")
    return word


@contextmanager
def damage_told(path: object) -> Iterator[None]:
    """Turn what a damaged file leads to, within the block, into an InputError that names the file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"the model in {path} cannot run: {str(error).rstrip('.')}.") from error
    except _DAMAGES as error:
        raise InputError(f"the model in {path} is damaged ({type(error).__name__}: {first_line(error)}).") from error


def _node(entry: dict[str, Any]) -> Node:
    attributes = {str(key): value for key, value in entry["attributes"].items()}
    for key in _ACTIVATIONS:
        if key in attributes:
            attributes[key] = Activation(**attributes[key])
    for key in _QUANTIZATIONS:
        if attributes.get(key) is not None:
            attributes[key] = Quantization(**attributes[key])
    return Node(entry["name"], entry["op"], _names(entry["inputs"]), attributes, entry["layer"])


def _choice(words: dict[str, Any]) -> ConvChoice:
    choice = ConvChoice(**words)
    if not choice.is_sound:
        raise ValueError(f"{words} is no choice")
    return choice


def _weight(shape: list[int], bits: Tensor, values: Tensor) -> SparseWeight:
    if not all(type(n) is int and 0 < n < 2**31 for n in shape) or values.dtype not in _VALUE_DTYPES:
        raise ValueError(f"a weight of {values.dtype} cannot have the shape {shape}")
    weight = SparseWeight(tuple(shape), bits, values)
    kept = int(np.unpackbits(bits.numpy()).sum())
    if bits.numel() != -(-weight.size // 8) or kept != values.numel():
        raise ValueError(f"a weight of shape {list(shape)} has {values.numel()} values and {kept} kept bits")
    return weight
