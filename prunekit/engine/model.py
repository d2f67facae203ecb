"""The accelerated model: a graph and its program behind an nn.Module's face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten, treespec_loads

from prunekit.engine.artefact import load_graph, save_graph
from prunekit.engine.batches import check_shapes
from prunekit.engine.filters import ConvChoice
from prunekit.engine.graph import Graph
from prunekit.engine.program import Program, Segment, StepTime, operator_of
from prunekit.errors import InputError
from prunekit.ops import native


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
        lanes, _ = native.lane_layout()
        save_graph(self.graph, self.choices, self.example, lanes, path)

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
    def _run(self, inputs: Sequence[Tensor], times: list[StepTime] | None) -> object:
        self._check(inputs)
        with torch.no_grad():
            return tree_unflatten(self.program.run([x.detach() for x in inputs], times), self._spec)

    def _check(self, inputs: Sequence[object]) -> None:
        if len(inputs) != len(self.graph.inputs):
            raise InputError(f"expected {len(self.graph.inputs)} inputs, got {len(inputs)}.")
        for name, x in zip(self.graph.inputs, inputs, strict=True):
            if not isinstance(x, Tensor) or x.device.type != "cpu":
                found = f"one on {x.device}" if isinstance(x, Tensor) else type(x).__name__
                raise InputError(f"expected a tensor on the CPU as {name}, got {found}.")
        check_shapes(self.graph, [list(x.shape) for x in inputs if isinstance(x, Tensor)], self.example)
