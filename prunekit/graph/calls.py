"""Calls: the arguments of a forward, of any nesting, with other tensors in their places."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.structure import Structure, flatten, in_float64

_MAX_SIDE_STEP = 64


@dataclass(frozen=True)
class Call:
    """Positional and keyword arguments.

    Attributes:
        args: Tensors, containers of tensors, None and whatever else a forward takes.
        kwargs: Likewise, by name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, example_input: object, example_kwargs: Mapping[str, Any] | None = None) -> Call:
        """Read what a user gave as an example.

        A tensor is the forward's only argument, a list or tuple its positional arguments, a dict whose keys are all
        parameters of the forward its keyword arguments; anything else is the only argument.

        Raises:
            InputError: There is no tensor in it.
        """
        kwargs = dict(example_kwargs or {})
        if isinstance(example_input, Mapping) and not kwargs and _are_parameters(model, example_input):
            call = cls((), dict(example_input))
        elif isinstance(example_input, (list, tuple)) and not hasattr(example_input, "_fields"):
            call = cls(tuple(example_input), kwargs)
        else:
            call = cls((example_input,), kwargs)
        if not call.tensors:
            found = ", ".join(type(value).__name__ for value in (*call.args, *call.kwargs.values())) or "nothing"
            raise InputError(
                f"Expected example_input to be a tensor or a sequence or dict that holds tensors, got {found}."
            )
        return call

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of `prunekit.structure.flatten`."""
        return flatten((self.args, dict(self.kwargs)))[0]

    @property
    def structure(self) -> Structure:
        """What is left of the arguments without their tensors."""
        return flatten((self.args, dict(self.kwargs)))[1]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Call:
        """Return the same call with other tensors."""
        args, kwargs = self.structure.build(tensors)
        return Call(args, kwargs)

    def copied(self) -> Call:
        """Return the call with copies of its tensors, for forwards that write into what they are given."""
        return self.with_tensors([x.detach().clone() for x in self.tensors])

    def run(self, model: Callable[..., Any]) -> Any:
        """Call `model`, which may write into its input: it gets copies."""
        call = self.copied()
        return model(*call.args, **call.kwargs)

    def widened(self) -> Call:
        """Return the call in float64."""
        return self.with_tensors(in_float64(self.tensors))

    def random(self, seed: int) -> Call:
        """Return the call with normally distributed numbers; integers and booleans are drawn from the example's own."""
        generator = torch.Generator().manual_seed(seed)
        return self.with_tensors([_drawn(x, x, generator) for x in self.tensors])

    def nudged(self, seed: int) -> Call:
        """Return the call with each floating-point number moved up or down by about one unit in the last place."""
        generator = torch.Generator().manual_seed(seed)
        return self.with_tensors([_nudged(x, generator) if x.is_floating_point() else x for x in self.tensors])

    def resized(self, seed: int) -> Iterator[Call]:
        """Yield random calls of a smaller and a larger size, not square.

        Steps are the power of two in the example's size, as networks halve it a few times.
        """
        for number, scale in enumerate((lambda n: max(1, n // 2), lambda n: n + 1)):
            generator = torch.Generator().manual_seed(seed + number)
            yield self.with_tensors([_drawn(x, x.new_empty(_other_size(x, scale)), generator) for x in self.tensors])

    def __str__(self) -> str:
        """Return the sizes of the tensors, such as 1×3×32×32."""
        return " and ".join("×".join(map(str, x.shape)) or "number" for x in self.tensors)


def _nudged(x: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(2, x.shape, generator=generator).to(x.device) * 2 - 1
    return x * (1 + torch.finfo(x.dtype).eps * signs.to(x.dtype))


def _are_parameters(model: nn.Module, arguments: Mapping[Any, Any]) -> bool:
    """Tell whether all keys name parameters of the forward."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return bool(arguments) and set(arguments) <= names


def _other_size(x: Tensor, scale: Callable[[int], int]) -> list[int]:
    shape = list(x.shape)
    if x.dim() == 4 and x.numel():
        steps = [min(size & -size, _MAX_SIDE_STEP) for size in shape[2:]]
        shape[2] = scale(shape[2] // steps[0]) * steps[0]
        shape[3] = (scale(shape[3] // steps[1]) + 1) * steps[1]
    return shape


def _drawn(example: Tensor, like: Tensor, generator: torch.Generator) -> Tensor:
    if like.is_complex() or not example.numel():
        return example
    if like.is_floating_point():
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
    places = torch.randint(example.numel(), like.shape, generator=generator).to(example.device)
    return example.flatten()[places]
