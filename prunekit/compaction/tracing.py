"""The model as a graph of ATen operators, from torch.export: functional, with parameters known by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from prunekit.errors import InputError


@dataclass(frozen=True)
class Traced:
    """A model's graph.

    Attributes:
        model: The model that was traced.
        nodes: In the order in which they run.
        tensors: The node of each parameter and buffer → its full name.
        shared: Names of parameters that two modules hold together.
    """

    model: nn.Module
    nodes: tuple[fx.Node, ...]
    tensors: dict[fx.Node, str]
    shared: frozenset[str]

    def tensor(self, name: str) -> Tensor:
        """Return a parameter or buffer by its full name."""
        module, _, attribute = name.rpartition(".")
        found = getattr(self.model.get_submodule(module), attribute)
        assert isinstance(found, Tensor)
        return found.detach()


def trace(model: nn.Module, inputs: Sequence[Tensor]) -> Traced:
    """Trace `model`, which is in eval mode, on `inputs`.

    Raises:
        InputError: It cannot be traced: control flow that depends on values, or operations that torch.export refuses.
    """
    program = export_program(model, inputs)
    signature = program.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = signature.inputs_to_lifted_tensor_constants
    nodes = tuple(program.graph.nodes)
    names = {node: tensors[node.name] for node in nodes if node.op == "placeholder" and node.name in tensors}
    for node in nodes:
        if node.op == "placeholder" and node.name in constants:
            node.meta["constant"] = program.constants[constants[node.name]]
    holders = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    modules = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    aliases = {name for name, p in model.named_parameters(remove_duplicate=False) if holders[id(p)] > 1}
    shared = {name for name, p in model.named_parameters(remove_duplicate=False) if modules[id(p)] > 1}
    return Traced(model, nodes, names, frozenset(shared & aliases))


def export_program(
    model: nn.Module, inputs: Sequence[Tensor], dynamic_shapes: object = None
) -> torch.export.ExportedProgram:
    """Export a model as functional ATen operators.

    Raises:
        InputError: torch.export refuses it; the sentence says why.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(model, tuple(inputs), dynamic_shapes=dynamic_shapes, strict=False)  # type: ignore[arg-type]
            if any(_mutates(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
    except Exception as error:  # a foreign forward raises what it likes
        raise InputError(
            "Expected a model that torch.export can trace on the example input, without control flow that depends on "
            f"pixels, but {type(model).__name__} raised {type(error).__name__}: {_first_line(error)}"
        ) from error
    if program.graph_signature.buffers_to_mutate or program.graph_signature.user_inputs_to_mutate:
        raise InputError(
            f"Expected a model whose forward leaves its buffers and its input alone in eval mode, but "
            f"{type(model).__name__} changes some."
        )
    return program


def operator_name(node: fx.Node) -> str:
    """Return what a node calls, without overload and in-place underscore: conv2d, add, getitem."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._overloadpacket.__name__.strip("_") if target.namespace == "aten" else str(target)
    return getattr(target, "__name__", str(target))


def layer_name(node: fx.Node) -> str:
    """Return the module in whose forward a node was traced."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".") + "."
