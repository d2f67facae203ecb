"""See the calls that a model makes, whoever makes them: modules, functions, methods, in place or not.

The model runs twice. `Recorder` notes what the calls of interest got on the reference, `Replay` pairs each of
them with the same call on the input and lets a rule answer it. Nothing in the model is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from prunekit.errors import InputError


@dataclass(frozen=True)
class Call:
    """One call on the input, and the arguments that it got on the reference.

    Attributes:
        function: what is called.
        args: the positional arguments, on the input.
        kwargs: the keyword arguments, on the input.
        reference: the positional arguments, on the reference.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reference: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The function's name, without the underscore of the variants that work in place."""
        return _plain_name(self.function)

    @property
    def is_in_place(self) -> bool:
        """Whether the call overwrites its first argument."""
        return _is_in_place(self.function, self.kwargs)

    def out_of_place(self, x: Any, *others: Any) -> Any:
        """Do the same to other tensors, leaving them as they are."""
        if not self.is_in_place:
            return self.function(x, *others, *self.args[1 + len(others) :], **self.kwargs)
        kwargs = {key: value for key, value in self.kwargs.items() if key != "inplace"}
        target = x.clone() if _works_in_place(self.function) else x
        return self.function(target, *others, *self.args[1 + len(others) :], **kwargs)


Handler = Callable[[Call], Tensor]


@dataclass(frozen=True)
class Rule:
    """How multipliers pass through a model.

    Attributes:
        handlers: function name → what answers its calls.
        rows_per_image: rows of the tensors in the model for each image.
        enter: makes what the model gets of the input [N, ...] and its reference.
        leave: makes ordinary outputs [N, ...] of what the model returned, given the outputs on the reference.
    """

    handlers: Mapping[str, Handler]
    rows_per_image: int
    enter: Callable[[Tensor, Tensor], Tensor]
    leave: Callable[[Any, Any], Any]


@dataclass(frozen=True)
class _Recorded:
    name: str
    args: tuple[Any, ...]
    versions: tuple[int, ...]


class Recorder(TorchFunctionMode):
    """Notes every call of a function with one of the given names; the calls themselves go ahead."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = frozenset(names)
        self.calls: list[_Recorded] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        positional, keywords = _with_input_first(args, kwargs)
        name = _plain_name(func)
        if name in self.names and positional:
            kept = positional
            if _is_in_place(func, keywords):
                kept = (positional[0].clone(), *positional[1:])
            self.calls.append(_Recorded(name, kept, _versions(kept)))
        return func(*positional, **keywords)


class Replay(TorchFunctionMode):
    """Answers each call that `Recorder` noted with the handler of its name.

    Args:
        handlers: function name → what answers its calls.
        calls: the calls on the reference, in order.
        rows_per_image: rows of the tensors for each row of the reference, unless that has one row for all.
    """

    def __init__(self, handlers: Mapping[str, Handler], calls: Sequence[_Recorded], rows_per_image: int = 1) -> None:
        super().__init__()
        self.rows_per_image = rows_per_image
        self.handlers = handlers
        self.calls = calls
        self.num_done = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        positional, keywords = _with_input_first(args, kwargs)
        name = _plain_name(func)
        if name not in self.handlers or not positional:
            return func(*positional, **keywords)
        recorded = self._next(name)
        if not any(isinstance(value, Tensor) and value.requires_grad for value in positional):
            return func(*positional, **keywords)
        self._check_shape(name, positional[0], recorded.args[0])
        if recorded.versions != _versions(recorded.args):
            raise InputError(f"DeepLIFT expected nothing to overwrite what {name} read, but the model did so in place.")
        call = Call(func, positional, keywords, recorded.args)
        out = self.handlers[name](call)
        return positional[0].copy_(out) if call.is_in_place else out

    def _next(self, name: str) -> _Recorded:
        recorded = self.calls[self.num_done] if self.num_done < len(self.calls) else None
        self.num_done += 1
        if recorded is None or recorded.name != name:
            raise InputError(
                "DeepLIFT expected the model to take the same steps on input and reference, but where the input "
                f"met {name}, the reference met {recorded.name if recorded else 'nothing'}."
            )
        return recorded

    def _check_shape(self, name: str, x: Any, x_ref: Any) -> None:
        if not isinstance(x, Tensor) or not isinstance(x_ref, Tensor):
            return
        if x.shape[1:] != x_ref.shape[1:] or len(x_ref) * self.rows_per_image not in (self.rows_per_image, len(x)):
            raise InputError(
                f"DeepLIFT cannot pair what {name} reads: {list(x_ref.shape)} on the reference, {list(x.shape)} on the "
                "input; a model that joins images with other dimensions needs one reference per image."
            )


def apply_function(function: type[Function], *args: Any) -> Tensor:
    """Apply one of the rules' autograd functions, all of which return one tensor."""
    out: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return out


def _plain_name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", "")
    return name if name.startswith("__") else name.strip("_")


def _works_in_place(function: Callable[..., Any]) -> bool:
    name = getattr(function, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _is_in_place(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    return _works_in_place(function) or bool(kwargs.get("inplace", False))


def _with_input_first(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Move an input given by keyword to the front, where all others are."""
    positional, keywords = tuple(args), dict(kwargs or {})
    if not positional and "input" in keywords:
        positional = (keywords.pop("input"),)
    return positional, keywords


def _versions(args: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(value._version for value in args if isinstance(value, Tensor))
