"""Submodules on the engine inside a model that keeps its class, its methods and its control flow.

A part's `forward` is replaced on that one module; the module stays where it is, with its class, its attributes, its
weights and its hooks. Whatever the engine does not take (another size than a graph bound to sizes, gradients, training,
a trace, an argument of another kind) runs the module's own forward.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.engine.model import AcceleratedModel
from prunekit.engine.signature import Signature
from prunekit.errors import InputError
from prunekit.nn.calls import Call
from prunekit.structure import tensors_of

# Calls of different shapes that are kept of a part: a feature pyramid has five levels, RoI heads two sizes.
_MAX_CALLS = 12


class PartForward:
    """What stands in for the `forward` of a module that is on the engine.

    Attributes:
        module: The module; its class's forward is the one that runs where no engine takes the arguments.
        engines: One for all sizes, or one for each size that was met.
    """

    def __init__(self, module: nn.Module, engines: Sequence[AcceleratedModel]) -> None:
        self.module, self.engines = module, list(engines)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the engine that takes these arguments, or the module's own forward."""
        if not self._needs_own_forward(args, kwargs):
            for engine in self.engines:
                try:
                    return engine(*args, **kwargs)
                except InputError:  # raised before anything ran
                    continue
        return self._own(*args, **kwargs)

    @property
    def __code__(self) -> Any:
        """The code of the module's own forward, which torch.export asks a forward for."""
        return self._own.__func__.__code__

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the module's own forward."""
        return inspect.signature(self._own)

    @property
    def _own(self) -> Any:
        return type(self.module).forward.__get__(self.module)

    def __deepcopy__(self, memo: dict[int, Any]) -> PartForward:
        """Return the same for the module's copy; engines change in nothing but plans and are shared."""
        return PartForward(copy.deepcopy(self.module, memo), self.engines)

    def _needs_own_forward(self, args: Any, kwargs: Any) -> bool:
        if self.module.training or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return True
        tensors = tensors_of((args, kwargs))
        is_differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return is_differentiated or any(type(t) not in (Tensor, nn.Parameter) for t in tensors)


def put_on_engine(module: nn.Module, engines: Sequence[AcceleratedModel]) -> None:
    """Let `engines` stand in for the forward of a module."""
    module.forward = PartForward(module, engines)


@dataclass
class PartCalls:
    """The calls that a submodule received.

    Attributes:
        calls: The first of each kind, in order.
        counts: How often each came.
        left_out: Calls that are not kept, since there were too many kinds, or because an argument cannot be described.
    """

    calls: list[Call] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    left_out: int = 0

    def by_size(self) -> list[Call]:
        """Return the calls, those with most numbers first."""
        return sorted(self.calls, key=lambda call: -sum(tensor.numel() for tensor in call.tensors))

    def add(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Keep a call's arguments in copies, since what follows may write into them."""
        try:
            signature, tensors = Signature.of_call(module.forward, args, kwargs)
        except (TypeError, ValueError):
            self.left_out += 1
            return
        for i, call in enumerate(self.calls):
            if _is_alike(call, signature, tensors):
                self.counts[i] += 1
                return
        if len(self.calls) >= _MAX_CALLS:
            self.left_out += 1
            return
        self.calls.append(Call(signature, tuple(tensor.detach().clone() for tensor in tensors)))
        self.counts.append(1)


def record_calls(model: nn.Module, names: Sequence[str], run: Callable[[nn.Module], object]) -> dict[str, PartCalls]:
    """Run a model once and return what each of the named submodules was called with.

    Args:
        model: a copy that nobody else uses; it gets hooks for the time of the run.
        names: of its submodules.
        run: calls the model it is given on the example.
    """
    found = {name: PartCalls() for name in names}
    with ExitStack() as hooks:
        for name, calls in found.items():
            handle = model.get_submodule(name).register_forward_pre_hook(
                lambda module, args, kwargs, calls=calls: calls.add(module, args, kwargs), with_kwargs=True
            )
            hooks.callback(handle.remove)
        run(model)
    return found


def check_names(model: nn.Module, parts: object) -> list[str]:
    """Return the names of submodules that a user gave, in their order.

    Raises:
        InputError: there is no such submodule (close ones are listed), or it is no list of names.
    """
    if isinstance(parts, str) or not isinstance(parts, Sequence) or not parts:
        raise InputError(f'Expected names of submodules as parts, such as ["backbone"], got {parts!r}.')
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for name in parts:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=5)
            hint = ", ".join(near or [name for name, _ in model.named_children()]) or "no submodule at all"
            raise InputError(f"Expected names of submodules as parts, got {name!r}; {type(model).__name__} has {hint}.")
    return list(dict.fromkeys(parts))


def _is_alike(call: Call, signature: Signature, tensors: Sequence[Tensor]) -> bool:
    return (
        call.signature.arguments.keys() == signature.arguments.keys()
        and all(
            structure.differs_from(signature.arguments[name]) is None
            for name, structure in call.signature.arguments.items()
        )
        and [(t.shape, t.dtype) for t in call.tensors] == [(t.shape, t.dtype) for t in tensors]
    )
