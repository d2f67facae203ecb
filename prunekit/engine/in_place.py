"""In-place operators made functional where that is plainly the same, as torch's own way traces everything anew."""

from __future__ import annotations

import torch
from torch import fx
from torch.export import ExportedProgram

from prunekit.graph.nodes import mutates

# Operators whose result shares no memory with what they read, whatever the sizes.
_FRESH = {
    "conv1d", "conv2d", "conv3d", "conv_transpose2d", "convolution", "batch_norm", "instance_norm", "group_norm",
    "layer_norm", "linear", "addmm", "matmul", "mm", "bmm", "add", "sub", "mul", "div", "cat", "relu", "relu6", "silu",
    "leaky_relu", "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "gelu", "elu", "softmax", "clamp", "mean",
    "max_pool2d", "avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "constant_pad_nd", "sum", "amax", "exp",
    "softplus", "mish", "selu", "celu", "add_", "sub_", "mul_", "div_", "relu_", "silu_", "leaky_relu_", "hardswish_",
    "hardsigmoid_", "hardtanh_", "sigmoid_", "tanh_", "elu_", "clamp_", "relu6_", "gelu_", "softplus_", "mish_",
    "selu_", "celu_", "clamp_min", "clamp_min_", "clamp_max", "clamp_max_", "named_sizes",
}  # fmt: skip


def make_functional(program: ExportedProgram) -> ExportedProgram:
    """Return a program without in-place operators; the graph of the one handed over may change."""
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    for node in order:
        if not mutates(node):
            continue
        if not _is_plain(node):  # by now the results of earlier ones are read where their inputs were
            program.graph_module.recompile()
            functional: ExportedProgram = program.run_decompositions({})
            return functional
        _replace(node, order)
    return program


def _is_plain(node: fx.Node) -> bool:
    """Return whether nothing shares memory with what is written to, so that later readers can have the result."""
    source = node.args[0] if node.args else None
    if _functional(node) is None or not isinstance(source, fx.Node) or not _is_fresh(source):
        return False
    return all(user is node or _is_reader(user) for user in source.users)


def _is_fresh(node: fx.Node) -> bool:
    return node.op == "call_function" and _name(node) in _FRESH


def _is_reader(node: fx.Node) -> bool:
    """Return whether a node keeps no view of what it reads."""
    return node.op == "output" or str(node.target) == "aten.sym_size.int" or _is_fresh(node)


def _name(node: fx.Node) -> str:
    return node.target._overloadpacket.__name__ if isinstance(node.target, torch._ops.OpOverload) else ""


def _functional(node: fx.Node) -> torch._ops.OpOverload | None:
    """Return relu for relu_, with the same overload."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return None
    name = _name(node)
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
    found: torch._ops.OpOverload | None = getattr(packet, node.target._overloadname, None)
    if found is None or found._schema.is_mutable:
        return None
    names = [[a.name for a in target._schema.arguments] for target in (found, node.target)]
    return found if names[0] == names[1] else None


def _replace(node: fx.Node, order: dict[fx.Node, int]) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    found = _functional(node)
    assert found is not None
    node.target = found
    source.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node and order[user] > order[node])
