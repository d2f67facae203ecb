"""A model as an exported program of any image size and batch, or, where its forward allows but one, of that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from prunekit.compaction.tracing import export_program
from prunekit.errors import InputError


def export_any_size(model: nn.Module, example: Sequence[Tensor]) -> tuple[ExportedProgram, bool]:
    """Export `model`, which is in eval mode.

    Returns:
        The program, and whether images may have any number, height and width.

    Raises:
        InputError: torch.export refuses it even for the example's size.
    """
    if any(x.dim() == 4 for x in example):
        twice = tuple(_two_images(x) for x in example)
        free = tuple({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO} if x.dim() == 4 else None for x in example)
        try:
            program = export_program(model, twice, free)
            if _is_free(program, twice):
                return program, True
        except InputError:
            pass  # sizes are part of the forward
    return export_program(model, example), False


def _two_images(x: Tensor) -> Tensor:
    """Return a batch of two, because the exporter takes a size of one for a constant."""
    return torch.cat([x[:1], x[:1]]) if x.dim() == 4 else x


def _is_free(program: ExportedProgram, example: Sequence[Tensor]) -> bool:
    """Tell whether no size of an image became a constant."""
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = [nodes[name].meta["val"] for name in names if isinstance(name, str)]
    return all(
        not isinstance(value.shape[dim], int)
        for value, x in zip(values, example, strict=True)
        if x.dim() == 4
        for dim in (0, 2, 3)
    )
