"""A model as an exported program of any image size and batch, or, where its forward allows but one, of that."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from prunekit.errors import InputError
from prunekit.graph.calls import Call
from prunekit.graph.export import export_flat, export_program
from prunekit.structure import Structure


def export_any_size(model: nn.Module, example: Call) -> tuple[ExportedProgram, bool]:
    """Export `model`, which is in eval mode, as it is called.

    Returns:
        The program, and whether images may have any number, height and width.

    Raises:
        InputError: torch.export refuses it even for the example's size.
    """
    twice = example.with_tensors([_two_images(x) for x in example.tensors])
    sizes = [_free_sizes(x) for x in twice.tensors]
    if any(sizes) and not example.kwargs:
        free = example.structure.children[0].build(sizes)  # type: ignore[arg-type]
        try:
            program = export_program(model, twice, free)
            if _is_free(program, twice):
                return program, True
        except InputError:
            pass  # sizes are part of the forward
    return export_program(model, example), False


def export_flat_any_size(model: nn.Module, example: Call) -> tuple[ExportedProgram, Structure, bool]:
    """Export `model`, which is in eval mode, as a program of tensors alone.

    Returns:
        The program, how its outputs nest, and whether images may have any number, height and width.

    Raises:
        InputError: torch.export refuses it even for the example's size.
    """
    twice = example.with_tensors([_two_images(x) for x in example.tensors])
    sizes = [_free_sizes(x) for x in twice.tensors]
    if any(sizes):
        try:
            program, outputs = export_flat(model, twice, sizes)
            if _is_free(program, twice):
                return program, outputs, True
        except InputError:
            pass  # sizes are part of the forward
    return *export_flat(model, example), False


def _free_sizes(x: Tensor) -> dict[int, object] | None:
    return {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO} if x.dim() == 4 else None


def _two_images(x: Tensor) -> Tensor:
    """Return a batch of two, because the exporter takes a size of one for a constant."""
    return torch.cat([x[:1], x[:1]]) if x.dim() == 4 else x


def _is_free(program: ExportedProgram, example: Call) -> bool:
    """Tell whether no size of an image became a constant."""
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = [nodes[name].meta["val"] for name in names if isinstance(name, str)]
    values = [value for value in values if isinstance(value, Tensor)]
    return all(
        not isinstance(value.shape[dim], int)
        for value, x in zip(values, example.tensors, strict=True)
        if x.dim() == 4
        for dim in (0, 2, 3)
    )
