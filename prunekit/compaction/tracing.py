"""The model as a graph of ATen operators, from torch.export: functional, with parameters known by their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunekit.compaction.calls import Call
from prunekit.engine.exporting import quiet
from prunekit.errors import InputError
from prunekit.structure import Structure, flatten

#: Operators that hand a tensor on in another dtype or on another device.
CASTS = ("to", "to_copy", "type_as")


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


class Flat(nn.Module):
    """A model that takes its tensors one by one and returns its outputs' tensors, whatever they are nested in.

    It shares the model's parameters, buffers and submodules under their own names.
    """

    def __init__(
        self, model: nn.Module, example: Call, note: Callable[[Structure], None], is_copying: bool = False
    ) -> None:
        """Wrap a model.

        Args:
            model: It is only read.
            example: Says how its arguments nest.
            note: Is told how the outputs nest; torch.export puts attributes back to what they were.
            is_copying: Whether the model gets copies of the tensors, because it writes into them.
        """
        super().__init__()
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.training = model.training
        self._call: Callable[[Sequence[Tensor]], Call] = lambda tensors: example.with_tensors(tensors)
        # Not a submodule: that would rename the parameters.
        self._model: Callable[..., Any] = lambda *args, **kwargs: model(*args, **kwargs)
        self._note, self._is_copying = note, is_copying

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the model, and tell how its outputs nest."""
        call = self._call([x.clone() for x in tensors] if self._is_copying else tensors)
        found, structure = flatten(self._model(*call.args, **call.kwargs))
        self._note(structure)
        return tuple(found)


def trace(model: nn.Module, example: Call) -> Traced:
    """Trace `model`, which is in eval mode, on an example.

    Raises:
        InputError: It cannot be traced: control flow that depends on values, or operations that torch.export refuses.
    """
    program, _ = export_flat(model, example)
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


def export_flat(
    model: nn.Module, example: Call, sizes: Sequence[object] | None = None
) -> tuple[torch.export.ExportedProgram, Structure]:
    """Export a model as a program of its tensors alone, and say how the outputs nest.

    Args:
        model: In eval mode; it may write into its inputs.
        example: What it is traced on.
        sizes: The dynamic sizes of each tensor, as torch.export takes them.

    Raises:
        InputError: torch.export refuses it, or the forward changes buffers.
    """
    for is_copying in (False, True):
        outputs: list[Structure] = []
        flat = Flat(model, example, outputs.append, is_copying)
        inputs = Call(tuple(x.detach().clone() for x in example.tensors))
        program = export_program(flat, inputs, None if sizes is None else (tuple(sizes),), type(model).__name__)
        if not program.graph_signature.user_inputs_to_mutate:
            break
    if program.graph_signature.buffers_to_mutate:
        raise InputError(
            f"Expected a model whose forward leaves its buffers alone in eval mode, but {type(model).__name__} changes "
            f"{', '.join(program.graph_signature.buffers_to_mutate.values())}."
        )
    return program, outputs[-1]


def export_program(
    model: nn.Module, example: Call, dynamic_shapes: Any = None, name: str = ""
) -> torch.export.ExportedProgram:
    """Export a model as functional ATen operators.

    Raises:
        InputError: torch.export refuses it; the sentence says why, and names the model's largest part.
    """
    name = name or type(model).__name__
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(
                model, example.args, dict(example.kwargs), dynamic_shapes=dynamic_shapes, strict=False
            )
            if any(_mutates(node) or _is_block(node) for node in program.graph.nodes):
                program = program.run_decompositions({})  # nothing in place; autocast's casts one by one
    except Exception as error:  # a foreign forward raises what it likes
        raise InputError(
            "Expected a model that torch.export can trace on the example input, without control flow that depends on "
            f"pixels, but {name} raised {type(error).__name__}: {_first_line(error)}{_part_to_compact(model)}"
        ) from error
    return program


def operator_name(node: fx.Node) -> str:
    """Return what a node calls, without overload and in-place underscore: conv2d, add, getitem."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._overloadpacket.__name__.strip("_") if target.namespace == "aten" else str(target)
    return getattr(target, "__name__", str(target))


def source(arg: object) -> object:
    """Return the node of which a node is a cast, or casts of casts; itself where it is none."""
    while isinstance(arg, fx.Node) and arg.op == "call_function" and operator_name(arg) in CASTS:
        arg = arg.args[0]
    return arg


def readers(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that use a node, or a cast of it."""
    found = []
    for user in node.users:
        name = operator_name(user) if user.op == "call_function" else ""
        if "assert" not in name:  # of a dtype, which the exporter puts in front of casts
            found += readers(user) if name in CASTS else [user]
    return found


def layer_name(node: fx.Node) -> str:
    """Return the module in whose forward a node was traced."""
    stack = node.meta.get("nn_module_stack") or {}
    return re.sub(r"@\d+", "", str(list(stack.values())[-1][0])) if stack else ""  # "tower@1" is its second call


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _part_to_compact(model: nn.Module) -> str:
    """Name the child with most parameters, which detectors call their backbone."""
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    if len(sizes) < 2:
        return ""
    largest = max(sizes, key=lambda name: sizes[name])
    return f" A part of it may trace alone: compact(model.{largest}, ...) with that part's input."


def _is_block(node: fx.Node) -> bool:
    """Tell whether a node runs a graph of its own, as a block under autocast does."""
    return isinstance(node.target, torch._ops.HigherOrderOperator)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".") + "."
