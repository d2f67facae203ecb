"""The accelerated model: a graph and its program behind an nn.Module's face."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten, treespec_loads

from prunekit import documents
from prunekit.documents import Content
from prunekit.engine.artefact import (
    CPU_FORMAT,
    SAVED_MODEL,
    check_format,
    choices_document,
    choices_of,
    damage_told,
    graph_content,
    read_graph,
)
from prunekit.engine.filters import ConvChoice
from prunekit.engine.graph import Graph
from prunekit.engine.program import Program, Segment, StepTime
from prunekit.engine.validation import check_examples
from prunekit.errors import InputError
from prunekit.ops import native

# Attributes that the constructor makes of its arguments.
_MADE = ("graph", "choices", "example", "program", "_spec")


class AcceleratedModel(nn.Module):
    """An inference model that the engine runs: no parameters, no gradients, the original's inputs and outputs.

    Several threads may call it at the same time. Images of another size are planned when they first come.

    Attributes:
        report: What was chosen and measured (`prunekit.nn.AccelerationReport`); None after loading.
    """

    report: object

    def __init__(self, graph: Graph, choices: Mapping[str, ConvChoice], example: Sequence[Sequence[int]]) -> None:
        """Wrap a fused and compressed graph, traced on inputs of shapes `example`."""
        super().__init__()
        self.graph, self.choices, self.report = graph, dict(choices), None
        self.example = [list(shape) for shape in example]
        self.program = Program(graph, self.choices)
        self._spec = treespec_loads(graph.output_spec)
        self.training = False

    def forward(self, *inputs: Tensor) -> object:
        """Run the graph.

        Raises:
            InputError: the number, kind, device or size of the inputs is not what the graph takes.
        """
        return self._run(inputs, None)

    def profile(self, *inputs: Tensor) -> list[StepTime]:
        """Run the graph once and return where the time went, step by step; of the last image of a batch."""
        times: list[StepTime] = []
        self._run(inputs, times)
        return times

    def train(self, mode: bool = True) -> AcceleratedModel:
        """Refuse to train: BatchNorm is folded, and there are no parameters.

        Raises:
            InputError: `mode` is True.
        """
        if mode:
            raise InputError("an accelerated model is for inference; train the model that it was made from.")
        return self

    def segments(self) -> list[Segment]:
        """Return the native parts that were planned so far."""
        return self.program.segments()

    def save(self, path: str | Path) -> None:
        """Write the model to one safetensors file, without pickle; `load` reads it in any process."""
        documents.write(path, *self._content())

    @classmethod
    def load(cls, path: str | Path) -> AcceleratedModel:
        """Read a model that `save` wrote; cuts chosen for other vector widths are replaced by the rule of thumb.

        Raises:
            InputError: there is no such file, or it is not one of ours, or damaged.
        """
        return cls.of_content(documents.read(path, SAVED_MODEL), path)

    @classmethod
    def of_content(cls, content: Content, path: object) -> AcceleratedModel:
        """Build the model of a file's content, and run it dry on the example's shapes; messages name `path`.

        Raises:
            InputError: the content is not that of an accelerated model, or damaged.
        """
        check_format(content, CPU_FORMAT, path)
        with damage_told(path):
            graph = read_graph(content)
            choices, lanes = choices_of(content.document), int(content.document["lanes"])
            width, longest = native.lane_layout()
            are_ours = lanes == width and all(c.tile_vectors <= longest[c.rows // 2] for c in choices.values())
            model = cls(graph, choices if are_ours else {}, check_examples(graph, content.document["example"]))
            model.program.run_dry(model.example)
            return model

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the saved form, and what was set on the model since it was made."""
        return _of_bytes, (documents.to_bytes(*self._content()),), self._extras()

    def __deepcopy__(self, memo: dict[int, Any]) -> AcceleratedModel:
        """Return a model of its own that shares the graph, which nobody changes."""
        copied = AcceleratedModel(self.graph, self.choices, self.example)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self._extras(), memo))
        return copied

    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        lanes, _ = native.lane_layout()
        more = {"example": self.example, "lanes": lanes, "choices": choices_document(self.choices)}
        return graph_content(self.graph, CPU_FORMAT, more)

    def _extras(self) -> dict[str, Any]:
        """Return the attributes that the constructor does not make: the report, hooks, a user's own."""
        return {key: value for key, value in self.__dict__.items() if key not in _MADE}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _run(self, inputs: Sequence[Tensor], times: list[StepTime] | None) -> object:
        self._check(inputs)
        with torch.no_grad():
            return tree_unflatten(self.program.run([x.detach() for x in inputs], times), self._spec)

    def _check(self, inputs: Sequence[object]) -> None:
        if len(inputs) != len(self.graph.inputs):
            raise InputError(f"expected {len(self.graph.inputs)} inputs, got {len(inputs)}.")
        for name, x, example in zip(self.graph.inputs, inputs, self.example, strict=True):
            if not isinstance(x, Tensor) or x.device.type != "cpu":
                found = f"one on {x.device}" if isinstance(x, Tensor) else type(x).__name__
                raise InputError(f"expected a tensor on the CPU as {name}, got {found}.")
            shape = list(x.shape)
            if self.graph.is_size_free and len(shape) == 4 and shape[1] == example[1]:
                continue
            if shape != example:
                free = "; the model's forward computes with that size" if not self.graph.is_size_free else ""
                raise InputError(f"expected {example} as the shape of {name}, got {shape}{free}.")


def _of_bytes(data: bytes) -> AcceleratedModel:
    """Undo pickling."""
    where = "the pickled data"
    return AcceleratedModel.of_content(documents.read(data, "a pickled accelerated model"), where)
