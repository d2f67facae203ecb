"""From a torch module to a Graph: torch.export, then one node for every ATen operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunekit.engine.exporting import (
    export_symbolically,
    is_same_program,
    with_constant_sizes,
    without_size_one,
)
from prunekit.engine.graph import Graph
from prunekit.engine.in_place import make_functional
from prunekit.engine.reading import CaptureError, GraphReader
from prunekit.errors import first_line
from prunekit.graph.export import exported
from prunekit.graph.nodes import mutates

__all__ = ["CaptureError", "GraphReader", "capture", "capture_any_size", "capture_program"]


def capture(model: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Graph:
    """Capture `model`, which is in eval mode, on `inputs`; weights are shared with the model.

    The graph holds for the sizes of `inputs` only. Values of another dtype than `dtype` are left to torch.

    Raises:
        CaptureError: torch.export fails, or the forward changes buffers.
    """
    return capture_program(_exported(model, inputs), dtype)


def capture_any_size(model: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Graph:
    """Capture as `capture` does, for all sizes for which torch.export can say what the forward does; see `Graph.rule`.

    The forward is traced twice: with the sizes of `inputs`, and with a symbol for each batch, height and width. Where
    the second one fails, or is not the first one at the sizes of `inputs`, it is traced once more with sizes of 1 left
    as they are; where that does not help, the graph holds for the sizes of `inputs` only.

    Raises:
        CaptureError: torch.export fails, or the forward changes buffers.
    """
    bound = _exported(model, inputs)
    for keep_ones in (False, True) if any(1 in x.shape for x in inputs) else (False,):
        free = export_symbolically(model, inputs, keep_ones=keep_ones)
        if free is not None and is_same_program(bound, free):
            try:
                return capture_program(free, dtype)
            except Exception:  # what torch's symbols raise has many classes, and the other graph is as good here
                continue
    return capture_program(bound, dtype)


def capture_program(program: ExportedProgram, dtype: torch.dtype = torch.float32) -> Graph:
    """Capture what torch.export made of a model; symbolic sizes stay free.

    Raises:
        CaptureError: it has parts that the engine cannot run, or changes buffers.
    """
    try:
        if any(mutates(node) for node in program.graph.nodes):
            with without_size_one():
                program = make_functional(program)
    except Exception as error:  # whatever an operator's decomposition raises
        raise CaptureError(f"torch.export cannot make the model functional ({first_line(error)})") from error
    return GraphReader(program, dtype).graph()


def _exported(model: nn.Module, inputs: Sequence[Tensor]) -> ExportedProgram:
    try:
        with with_constant_sizes():
            return exported(model, inputs)
    except Exception as error:  # whatever a foreign forward raises
        raise CaptureError(f"torch.export cannot capture the model ({first_line(error)})") from error
