"""The accelerated model: a graph and its program behind an nn.Module's face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.engine.artefact import load_graph, save_graph
from prunekit.engine.filters import ConvChoice
from prunekit.engine.graph import Graph
from prunekit.engine.program import Program, Segment, StepTime, operator_of
from prunekit.engine.signature import Signature
from prunekit.errors import InputError
from prunekit.ops import native


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
        lanes, _ = native.lane_layout()
        save_graph(replace(self.graph, output_spec=self.signature.to_text()), self.choices, self.example, lanes, path)

    @classmethod
    def load(cls, path: str | Path) -> AcceleratedModel:
        """Read a model that `save` wrote; cuts chosen for other vector widths are replaced by the rule of thumb.

        Raises:
            InputError: there is no such file, or it is not one of ours, or damaged.
        """
        graph, choices, example, lanes = load_graph(path)
        width, longest = native.lane_layout()
        are_ours = lanes == width and all(c.tile_vectors <= longest[c.rows // 2] for c in choices.values())
        try:
            for node in graph.nodes:
                if not node.is_native:
                    operator_of(node.attributes["target"])
            return cls(graph, choices if are_ours else {}, example)
        except InputError as error:
            raise InputError(f"the model in {path} cannot run: {error}") from error
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise InputError(f"the model in {path} is damaged ({type(error).__name__}: {error}).") from error

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _run(self, args: Sequence[Any], kwargs: Mapping[str, Any], times: list[StepTime] | None) -> Any:
        inputs = self.signature.tensors(args, kwargs)
        self._check(inputs)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            outputs = self.program.run([_widened(x.detach()) for x in inputs], times)
            return self.signature.results.build(self._at_the_door(outputs))

    def _at_the_door(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return the outputs in the half types that the original returned."""
        dtypes = self.signature.result_dtypes
        if not any(dtype.itemsize == 2 for dtype in dtypes):
            return outputs
        return [y.to(dtype) if _is_half(dtype) else y for y, dtype in zip(outputs, dtypes, strict=True)]

    def _check(self, inputs: Sequence[object]) -> None:
        names = self.signature.names
        dtypes = self.signature.argument_dtypes or (None,) * len(names)
        for name, x, dtype, example in zip(names, inputs, dtypes, self.example, strict=True):
            if not isinstance(x, Tensor) or x.device.type != "cpu":
                found = f"one on {x.device}" if isinstance(x, Tensor) else type(x).__name__
                raise InputError(f"expected a tensor on the CPU as {name}, got {found}.")
            shape = list(x.shape)
            if dtype is not None and x.dtype != dtype:
                wanted, found = (str(d).removeprefix("torch.") for d in (dtype, x.dtype))
                of = " [N, C, H, W]" if len(example) == 4 else ""
                raise InputError(f"expected a {wanted} tensor{of} as {name}, got {found} {shape}.")
            if self.graph.is_size_free and len(shape) == 4 and shape[1] == example[1]:
                continue
            if shape != example:
                free = "; the model's forward computes with that size" if not self.graph.is_size_free else ""
                raise InputError(f"expected {example} as the shape of {name}, got {shape}{free}.")


def _is_half(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize == 2


def _widened(x: Tensor) -> Tensor:
    return x.float() if _is_half(x.dtype) else x
