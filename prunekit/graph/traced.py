"""A model as a graph whose parameters and buffers are known by their names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, fx, nn

from prunekit.graph.calls import Call
from prunekit.graph.export import export_flat


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
