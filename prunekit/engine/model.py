"""The accelerated model: a graph and its program behind an nn.Module's face."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import documents
from prunekit.comparison import is_half
from prunekit.documents import Content
from prunekit.engine.artifact import (
    CPU_FORMAT,
    SAVED_MODEL,
    check_format,
    choices_document,
    choices_of,
    damage_told,
    graph_content,
    read_graph,
)
from prunekit.engine.batches import check_shapes
from prunekit.engine.filters import ConvChoice, fit_here
from prunekit.engine.graph import Graph
from prunekit.engine.program import Program, Segment, StepTime
from prunekit.engine.signature import Signature
from prunekit.errors import InputError
from prunekit.ops import native

# Attributes that the constructor makes of its arguments.
_MADE = ("graph", "choices", "example", "program", "signature")


class AcceleratedModel(nn.Module):
    """An inference model that the engine runs: no parameters, no gradients, the original's inputs and outputs.

    It is called as the original is, positionally or by keyword, and returns the classes that the original returned on
    the example. Arguments that are no tensors must equal the example's. It computes in float32, also under
    torch.autocast; tensors that came or left in a half type on the example still do. It writes into no input.

    Several threads may call it at the same time. Images of another size are planned when they first come.

    Attributes:
        report: What was chosen and measured (`prunekit.nn.AccelerationReport`); None after loading.
        signature: How it is called and what it returns.
    """

    report: object

    def __init__(
        self,
        graph: Graph,
        choices: Mapping[str, ConvChoice],
        example: Sequence[Sequence[int]],
        signature: Signature | None = None,
    ) -> None:
        """Wrap a fused and compressed graph, traced on inputs of shapes `example`.

        Without a `signature` it is the graph's `output_spec`.
        """
        super().__init__()
        self.graph, self.choices, self.report = graph, dict(choices), None
        self.example = [list(shape) for shape in example]
        self.program = Program(graph, self.choices)
        self.signature = signature or Signature.of_text(graph.output_spec, graph.inputs)
        counts = len(self.signature.names), self.signature.results.num_tensors
        if counts != (len(graph.inputs), len(graph.outputs)):
            raise ValueError(f"a graph of {len(graph.inputs)} inputs and {len(graph.outputs)} outputs is called with "
                             f"{counts[0]} tensors and returns {counts[1]}")  # fmt: skip
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph on the original's arguments.

        Raises:
            InputError: the arguments are not those of the original's forward, or one that is no tensor is not the
                example's, or the kind, device or size of a tensor is not what the graph takes.
        """
        return self._run(args, kwargs, None)

    def profile(self, *args: Any, **kwargs: Any) -> list[StepTime]:
        """Run the graph once and return where the time went, step by step; of the last image of a batch."""
        times: list[StepTime] = []
        self._run(args, kwargs, times)
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
        """Write the model to one safetensors file, without pickle; `load` reads it in any process.

        Raises:
            InputError: the model takes or returns an object of a class that such a file cannot hold.
        """
        documents.write(path, *self._content(self.signature.to_text()))

    @classmethod
    def load(cls, path: str | Path) -> AcceleratedModel:
        """Read a model that `save` wrote; cuts chosen for other vector widths are replaced by the rule of thumb.

        Raises:
            InputError: there is no such file, or it is not one of ours, or damaged.
        """
        return cls.of_content(documents.read(path, SAVED_MODEL), path)

    @classmethod
    def of_content(cls, content: Content, path: object, signature: Signature | None = None) -> AcceleratedModel:
        """Build the model of a file's content, and run it dry on the example's shapes.

        Args:
            content: of the file.
            path: what messages call it.
            signature: of the model; None takes the file's.

        Raises:
            InputError: the content is not that of an accelerated model, or damaged.
        """
        check_format(content, CPU_FORMAT, path)
        with damage_told(path):
            graph, example = read_graph(content, lambda shapes: shapes)
            choices, lanes = choices_of(content.document), int(content.document["lanes"])
            are_ours = lanes == native.lane_layout()[0] and fit_here(choices, graph)
            model = cls(graph, choices if are_ours else {}, example, signature)
            model.program.run_dry(model.example, model.signature.argument_dtypes)
            return model

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the saved form, and what was set on the model since it was made."""
        signature = self.signature if self.signature.is_picklable else self.signature.to_text()
        text = signature if isinstance(signature, str) else self.graph.output_spec
        return _of_bytes, (documents.to_bytes(*self._content(text)), signature), self._extras()

    def __deepcopy__(self, memo: dict[int, Any]) -> AcceleratedModel:
        """Return a model of its own that shares the graph, which nobody changes."""
        copied = AcceleratedModel(self.graph, self.choices, self.example, self.signature)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self._extras(), memo))
        return copied

    def _content(self, signature: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        lanes, _ = native.lane_layout()
        more = {"example": self.example, "lanes": lanes, "choices": choices_document(self.choices)}
        return graph_content(replace(self.graph, output_spec=signature), CPU_FORMAT, more)

    def _extras(self) -> dict[str, Any]:
        """Return the attributes that the constructor does not make: the report, hooks, a user's own."""
        return {key: value for key, value in self.__dict__.items() if key not in _MADE}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _run(self, args: Sequence[Any], kwargs: Mapping[str, Any], times: list[StepTime] | None) -> Any:
        inputs = self.signature.tensors(args, kwargs)
        self._check(inputs)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            images = [x.detach() for x in inputs]
            if any(map(is_half, self.signature.argument_dtypes)):
                images = [x.float() if is_half(x.dtype) else x for x in images]
            outputs = self.program.run(images, times)
            return self.signature.results.build(self._narrowed(outputs))

    def _narrowed(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return the outputs in the half types that the original returned."""
        dtypes = self.signature.result_dtypes
        if not any(map(is_half, dtypes)):
            return outputs
        return [y.to(dtype) if is_half(dtype) else y for y, dtype in zip(outputs, dtypes, strict=True)]

    def _check(self, inputs: Sequence[object]) -> None:
        names = self.signature.names
        dtypes = self.signature.argument_dtypes or (None,) * len(names)
        for name, x, dtype, example in zip(names, inputs, dtypes, self.example, strict=True):
            if not isinstance(x, Tensor) or x.device.type != "cpu":
                found = f"one on {x.device}" if isinstance(x, Tensor) else type(x).__name__
                raise InputError(f"Expected a tensor on the CPU as {name}, got {found}.")
            shape = list(x.shape)
            if dtype is not None and x.dtype != dtype:
                wanted, found = (str(d).removeprefix("torch.") for d in (dtype, x.dtype))
                of = " [N, C, H, W]" if len(example) == 4 else ""
                raise InputError(f"Expected a {wanted} tensor{of} as {name}, got {found} {shape}.")
        check_shapes(self.graph, [list(x.shape) for x in inputs if isinstance(x, Tensor)], self.example)


def _of_bytes(data: bytes, signature: Signature | str) -> AcceleratedModel:
    """Undo pickling."""
    content = documents.read(data, "a pickled accelerated model")
    return AcceleratedModel.of_content(content, "the pickled data", None if isinstance(signature, str) else signature)
