"""What can be fused around a convolution: found by tracing, done by swapping modules of the model itself.

The model keeps its class, its methods and its control flow. The trace only tells which BatchNorm2d and which
activation module follow a convolution and nothing else; those become nn.Identity when their work has moved.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.prune import BasePruningMethod

from prunekit.errors import first_line

_FUSIBLE_ACTIVATIONS = (nn.LeakyReLU, nn.ReLU)


@dataclass(frozen=True)
class Followers:
    """Names of the modules that only read a convolution's output, or None."""

    batch_norm: str | None = None
    activation: str | None = None


@dataclass(frozen=True)
class Fusible:
    """What follows each convolution, by the convolution's name; `reason` says why nothing was found."""

    followers: dict[str, Followers]
    reason: str | None = None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def find_fusible(model: nn.Module) -> Fusible:
    """Trace `model` and list what may be fused; an untraceable model is whole and has nothing to fuse."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever a foreign forward raises when its inputs are proxies
        reason = f"the model cannot be traced ({first_line(error)}), so nothing was fused around convolutions"
        return Fusible({}, reason)
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(n.target)]) for n in graph.nodes if n.op == "call_module")
    # A module whose parameters the forward reads by itself must stay what it is.
    touched = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}

    def sole_follower(node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> fx.Node | None:
        if len(node.users) != 1:
            return None
        user = next(iter(node.users))
        name = str(user.target)
        is_plain = user.op == "call_module" and user.args == (node,) and not user.kwargs and name not in touched
        if is_plain and computes_as_torch(modules[name], kinds) and calls[id(modules[name])] == 1:
            return None if has_foreign_hooks(modules[name]) else user
        return None

    followers = {}
    for node in graph.nodes:
        name = str(node.target)
        if node.op != "call_module" or not is_plain_convolution(modules[name]) or name in touched:
            continue
        if calls[id(modules[name])] > 1:
            continue
        norm = sole_follower(node, (nn.BatchNorm2d,))
        if norm is not None and not modules[str(norm.target)].track_running_stats:
            followers[name] = Followers()  # it normalizes by each batch, so neither it nor what follows can move
            continue
        activation = sole_follower(norm or node, _FUSIBLE_ACTIVATIONS)
        followers[name] = Followers(str(norm.target) if norm else None, str(activation.target) if activation else None)
    return Fusible(followers)


def fold_batch_norms(model: nn.Module, fusible: Fusible) -> int:
    """Fold each BatchNorm2d that alone follows a convolution into it, in place; return how many."""
    folded = 0
    for name, follower in fusible.followers.items():
        if follower.batch_norm is None or has_foreign_hooks(model.get_submodule(name)):
            continue
        conv = folded_batch_norm(model.get_submodule(name), model.get_submodule(follower.batch_norm))
        replace_module(model, name, conv)
        replace_module(model, follower.batch_norm, nn.Identity())
        folded += 1
    return folded


def folded_batch_norm(conv: nn.Module, norm: nn.Module) -> nn.Conv2d:
    """Return a convolution that computes what `conv` and the BatchNorm2d behind it do, in eval mode.

    Exact zeros of a weight stay exact zeros, since folding scales whole filters.
    """
    folded: nn.Conv2d = fuse_conv_bn_eval(conv, norm)  # type: ignore[type-var,arg-type,assignment]
    return folded.requires_grad_(False)


def negative_slope(activation: nn.Module) -> float:
    """Return the slope below zero of a LeakyReLU or ReLU."""
    return float(activation.negative_slope) if isinstance(activation, nn.LeakyReLU) else 0.0


def is_plain_convolution(module: nn.Module) -> bool:
    """Return whether a module computes what nn.Conv2d does: neither its class nor itself has a forward of its own."""
    return (
        computes_as_torch(module, (nn.Conv2d,))
        and type(module)._conv_forward is nn.Conv2d._conv_forward  # type: ignore[attr-defined]
        and "_conv_forward" not in vars(module)
    )


def computes_as_torch(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return whether a module is of one of torch's classes `kinds`, or of a subclass that computes the same.

    Weight standardization, padding computed at every call, quantization-aware layers and many others are subclasses
    with a forward of their own.
    """
    cls = next((kind for kind in kinds if isinstance(module, kind)), None)
    if cls is None or "forward" in vars(module):
        return False
    return type(module).forward is cls.forward and type(module).__call__ is nn.Module.__call__


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule called `name`, under all of its names."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child, value in list(parent._modules.items()):
            if value is old:
                parent._modules[child] = module


def has_foreign_hooks(module: nn.Module) -> bool:
    """Return whether hooks watch or change what the module computes; pruning's own do not count."""
    pre_hooks = [h for h in module._forward_pre_hooks.values() if not isinstance(h, BasePruningMethod)]
    return bool(module._forward_hooks or pre_hooks or module._backward_hooks)
