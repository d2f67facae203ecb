"""Blocks of torch.autocast in a traced graph: what is inside is put where the block is."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx


def inline_autocast(module: fx.GraphModule) -> None:
    """Put the operators of autocast blocks into the graph itself, in place.

    Only which channels go where is read from it: that an operator computes in another dtype does not matter there.
    """
    for node in list(module.graph.nodes):
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "wrap_with_autocast":
            _inline(module, node)


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    getter: Any = node.args[4]  # device type, dtype, enabled, cache enabled, block, inputs
    block: Any = getattr(module, getter.target)
    inline_autocast(block)
    inputs = [inner for inner in block.graph.nodes if inner.op == "placeholder"]
    values: dict[fx.Node, Any] = dict(zip(inputs, node.args[5:], strict=True))
    with module.graph.inserting_before(node):
        outputs: Any = module.graph.graph_copy(block.graph, values)
    for user in list(node.users):
        if user.target is operator.getitem and isinstance(outputs, (list, tuple)):
            user.replace_all_uses_with(outputs[user.args[1]])
            module.graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(outputs)
    module.graph.erase_node(node)
