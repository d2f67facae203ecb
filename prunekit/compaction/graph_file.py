"""A program as JSON: its operators by name, of torch's own alone, so that reading a file runs nobody's code."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from prunekit.dry_run import without_memory
from prunekit.engine.signature import Signature
from prunekit.engine.validation import check_output_spec
from prunekit.errors import InputError
from prunekit.ops.named import operator_named

#: What sizes are computed with.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem")},
    **{name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "pow", "and_", "or_")},
    **{name: getattr(torch, name) for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not")},
}
_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_CONSTANTS = {
    "dtype": torch.dtype, "device": torch.device, "memory_format": torch.memory_format, "layout": torch.layout,
}  # fmt: skip


class ProgramModel(nn.Module):
    """A program that was read from a file, for inference; parameters keep their names in the original.

    Attributes:
        shapes: The shapes of the inputs that it was exported with.
        is_size_free: Whether images may have any number, height and width.
    """

    def __init__(self, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Build the program that `program_document` described.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: The document describes none.
        """
        super().__init__()
        self.shapes = [list(map(_size, shape)) for shape in document["shapes"]]
        self.is_size_free = bool(document["is_size_free"])
        self._signature = _read_signature(document)
        found = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
        if document.get("tensors", found) != found:
            raise ValueError("its tensors have other names, dtypes or shapes than the program's")
        self._graph_module = fx.GraphModule(_Holder(tensors), _read_graph(document))
        self._run_dry(document.get("dtypes"))
        self._shown = document
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program, called as the model was.

        Raises:
            InputError: The inputs are not of the number, structure or shapes that it takes.
        """
        inputs = self._signature.tensors(args, kwargs)
        self._check(inputs)
        return self._signature.results.build(self._graph_module(*inputs))

    def _run_dry(self, dtypes: Sequence[str] | None) -> None:
        """Run the program on tensors without memory, so that what does not fit is found now and not when it is called.

        Nothing is checked behind an operator whose output's size depends on its input's values, nor in files of the
        first version, which do not say the inputs' dtypes.
        """
        if dtypes is None:
            return
        with without_memory():
            inputs = [
                torch.empty(shape, dtype=_constant("dtype", dtype))
                for shape, dtype in zip(self.shapes, dtypes, strict=True)
            ]
            outputs = _DryRun(self._graph_module).run(*inputs)
            expected = self._signature.results.num_tensors
            if len(outputs) != expected:
                raise ValueError(f"{expected} values are to leave the program, but {len(outputs)} do")

    def _check(self, inputs: Sequence[object]) -> None:
        if len(inputs) != len(self.shapes):
            raise InputError(f"Expected {len(self.shapes)} inputs, got {len(inputs)}.")
        for x, shape in zip(inputs, self.shapes, strict=True):
            if not isinstance(x, Tensor):
                raise InputError(f"Expected an input of shape {shape}, got {type(x).__name__}.")
            found = list(x.shape)
            is_free = self.is_size_free and len(shape) == 4 == len(found)
            if found != shape and not (is_free and found[1] == shape[1]):
                free = "any number, height and width" if self.is_size_free else "no other size"
                raise InputError(f"Expected an input of shape {shape} ({free}), got {found}.")


class _DryRun(fx.Interpreter):
    """Runs a program, and checks what kernels without memory leave unchecked: that dimensions are there."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(target, torch._ops.OpOverload):
            names = (argument.name for argument in target._schema.arguments)
            _check_dims(target._schema.name, {**dict(zip(names, args, strict=False)), **kwargs})
        return super().call_function(target, args, kwargs)


def _check_dims(operator_name: str, given: Mapping[str, Any]) -> None:
    tensors = [value for value in tree_leaves(dict(given)) if isinstance(value, Tensor)]
    if not tensors:
        return
    rank = max(tensors[0].dim(), 1) + (operator_name in ("aten::unsqueeze", "aten::stack"))
    for dim in tree_leaves([given.get(name) for name in ("dim", "dims", "dim0", "dim1", "start_dim", "end_dim")]):
        if isinstance(dim, int) and not -rank <= dim < rank:
            raise IndexError(f"{operator_name} is to work on dimension {dim} of {rank}")


class _Holder(nn.Module):
    """The tensors, nested as in the original, so that their names are the same."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *path, attribute = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]  # type: ignore[assignment]
            module.register_buffer(attribute, tensor)


def program_document(
    program: ExportedProgram, example: Sequence[Tensor], is_size_free: bool, signature: Signature
) -> dict[str, Any]:
    """Describe a program of tensors alone; `program_tensors` are its numbers.

    Args:
        program: Takes and returns tensors one by one.
        example: The tensors that it was exported with.
        is_size_free: Whether images may have any number, height and width.
        signature: How the tensors nest in the model's arguments and outputs.

    Raises:
        InputError: It calls something that is none of torch's operators, or an argument or output is of a class that
            a file cannot hold.
    """
    where = _tensor_names(program)
    nodes = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in where:
            nodes.append({"name": node.name, "op": "tensor", "target": where[node.name]})
        elif node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            nodes.append({"name": node.name, "op": "input"})
        elif node.op == "call_function" and not _is_check(node):
            nodes.append(
                {
                    "name": node.name,
                    "op": "call",
                    "target": _target_name(node.target),
                    "args": [_encode(arg) for arg in node.args],
                    "kwargs": {key: _encode(arg) for key, arg in node.kwargs.items()},
                }
            )
        elif node.op == "output":
            nodes.append({"name": "output", "op": "output", "args": [_encode(leaf) for leaf in node.args[0]]})
    return {
        "nodes": nodes,
        "signature": signature.to_json(),
        "shapes": [list(x.shape) for x in example],
        "dtypes": [str(x.dtype).removeprefix("torch.") for x in example],
        "tensors": {name: [str(t.dtype), list(t.shape)] for name, t in program_tensors(program).items()},
        "is_size_free": is_size_free,
    }


def program_tensors(program: ExportedProgram) -> dict[str, Tensor]:
    """Return the parameters, buffers and constants that a program uses, by name."""
    held = {**dict(program.state_dict), **program.constants}
    return {name: held[name].detach() for name in _tensor_names(program).values() if isinstance(held[name], Tensor)}


def _read_signature(document: Mapping[str, Any]) -> Signature:
    """Read how the program is called; files of the first version have tensors one by one, and torch's output spec."""
    if "signature" in document:
        return Signature.from_json(document["signature"])
    names = [entry["name"] for entry in document["nodes"] if entry["op"] == "input"]
    check_output_spec(document["output_spec"])
    return Signature.of_text(document["output_spec"], names)


def _tensor_names(program: ExportedProgram) -> dict[str, str]:
    signature = program.graph_signature
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return {node: name for node, name in names.items() if node in used or node in signature.inputs_to_parameters}


def _is_check(node: fx.Node) -> bool:
    """Tell whether a node only asserts something about sizes or types."""
    return not node.users and "assert" in str(node.target)


def _target_name(target: object) -> str:
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target)
    if target in _NAMES:
        return _NAMES[target]
    raise InputError(f"Expected a model of torch's own operators, because files hold no code, but it calls {target}.")


def _encode(arg: Any) -> Any:
    if isinstance(arg, fx.Node):
        return {"node": arg.name}
    if isinstance(arg, (list, tuple)):
        return [_encode(part) for part in arg]
    for name, kind in _CONSTANTS.items():
        if isinstance(arg, kind):
            return {name: str(arg).removeprefix("torch.")}
    if isinstance(arg, float) and (arg != arg or arg in (float("inf"), float("-inf"))):
        return {"float": str(arg)}
    if arg is None or isinstance(arg, (bool, int, float, str)):
        return arg
    raise InputError(f"Expected arguments that JSON can hold, but the graph has one of type {type(arg).__name__}.")


def _read_graph(document: Mapping[str, Any]) -> fx.Graph:
    graph, nodes = fx.Graph(), dict[str, fx.Node]()

    def decode(arg: Any) -> Any:
        if isinstance(arg, list):
            return [decode(part) for part in arg]
        if not isinstance(arg, dict):
            return arg
        ((kind, value),) = arg.items()
        if kind == "node":
            return nodes[value]
        if kind == "float":
            return float(value)
        return torch.device(value) if kind == "device" else _constant(kind, value)

    for entry in document["nodes"]:
        if entry["op"] == "input":
            node = graph.placeholder(str(entry["name"]))
        elif entry["op"] == "tensor":
            node = graph.get_attr(str(entry["target"]))
        elif entry["op"] == "call":
            kwargs = {key: decode(arg) for key, arg in entry["kwargs"].items()}
            node = graph.call_function(_function(entry["target"]), tuple(map(decode, entry["args"])), kwargs)
        else:
            node = graph.output(tuple(map(decode, entry["args"])))
        nodes[entry["name"]] = node
    return graph


def _size(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no size")
    return value


def _constant(kind: str, value: str) -> Any:
    found = getattr(torch, value)
    if not isinstance(found, _CONSTANTS[kind]):
        raise ValueError(f"torch.{value} is no {kind}")
    return found


def _function(name: str) -> Callable[..., Any]:
    """Return an operator of torch, or one of the functions for sizes; nothing else can be called."""
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no name of an operator")
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    return operator_named(name)
