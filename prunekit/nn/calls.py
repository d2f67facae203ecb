"""Calls of a model: the user's example, and others like it, each run on tensors of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.engine.signature import Signature
from prunekit.errors import InputError
from prunekit.nn.random_state import own_random_state
from prunekit.structure import flatten

_SEED = 0


@dataclass(frozen=True)
class Call:
    """The arguments of one call.

    Attributes:
        signature: Everything about them that is no tensor.
        tensors: In the signature's order; nobody writes into them.
        is_written: Whether the model writes into a tensor of its arguments.
    """

    signature: Signature
    tensors: tuple[Tensor, ...]
    is_written: bool = False

    @classmethod
    def of_example(cls, model: nn.Module, example_input: object, example_kwargs: Mapping[str, Any] | None) -> Call:
        """Describe the call that a user gave as an example.

        Args:
            model: it will be called.
            example_input: the only argument, or a list or tuple of the positional ones.
            example_kwargs: the keyword arguments, or None.

        Raises:
            InputError: the model's forward does not take them, or there is no tensor in them.
        """
        args = tuple(example_input) if isinstance(example_input, (list, tuple)) else (example_input,)
        if example_input is None and example_kwargs:
            args = ()
        kwargs = {} if example_kwargs is None else example_kwargs
        if not isinstance(kwargs, Mapping):
            raise InputError(f"accelerate expects example_kwargs to be a dict; got {type(kwargs).__name__}.")
        try:
            given = flatten([args, list(kwargs.values())])[0]
        except ValueError as error:  # an object that holds itself
            raise InputError(f"accelerate cannot copy example_input: {error}") from error
        if not given:
            found = ", ".join(type(x).__name__ for x in (*args, *kwargs.values())) or "nothing"
            raise InputError(
                f"accelerate expects example_input to be a tensor or a sequence of tensors; got {found}. "
                "Other arguments may stand beside them, keyword arguments in example_kwargs."
            )
        try:
            signature, tensors = Signature.of_call(model.forward, args, kwargs)
        except TypeError as error:
            raise InputError(f"the model does not run on example_input: {error}") from error
        return cls(signature, tuple(tensor.detach().clone() for tensor in tensors))

    def run(self, model: nn.Module) -> Any:
        """Call `model` on copies of the tensors, which it may write into."""
        args, kwargs = self.signature.call([tensor.clone() for tensor in self.tensors])
        return model(*args, **kwargs)

    def time(self, model: nn.Module) -> Any:
        """Call `model` as cheaply as its user would: on copies only where it writes into them."""
        if self.is_written:
            return self.run(model)
        args, kwargs = self.signature.call(self.tensors)
        return model(*args, **kwargs)

    def writes(self, model: nn.Module) -> tuple[Any, bool]:
        """Return what `model` returns on copies, and whether it wrote into them."""
        copies = [tensor.clone() for tensor in self.tensors]
        args, kwargs = self.signature.call(copies)
        outputs = model(*args, **kwargs)
        return outputs, not all(is_same(copy, tensor) for copy, tensor in zip(copies, self.tensors, strict=True))

    def random(self) -> Call:
        """Return a call with other numbers: drawn between the smallest and the largest of each of the tensors.

        What a capture baked in of the example's values shows on them.
        """
        generator = torch.Generator().manual_seed(_SEED)
        return replace(self, tensors=tuple(_drawn_like(tensor, generator) for tensor in self.tensors))

    def map(self, function: Any) -> Call:
        """Return a call with what `function` makes of each of the tensors."""
        tensors = tuple(function(tensor) for tensor in self.tensors)
        signature = replace(self.signature, argument_dtypes=tuple(tensor.dtype for tensor in tensors))
        return replace(self, tensors=tensors, signature=signature)

    @property
    def words(self) -> str:
        """The shapes of the tensors, for messages."""
        return ", ".join(str(tuple(tensor.shape)) for tensor in self.tensors)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Put the random states of torch, NumPy and Python back at the end of the block."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (foreign forwards draw from this one)
    with own_random_state():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def is_same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same numbers; nan equals nan."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(
        torch.equal(a, b) or (torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num()))
    )


def _drawn_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.numel() == 0 or tensor.layout != torch.strided or tensor.is_quantized:
        return tensor
    if tensor.dtype == torch.bool:
        return (torch.rand(tensor.shape, generator=generator) < 0.5).to(tensor.device)
    if tensor.is_complex() or not bool(tensor.isfinite().all()):
        return tensor
    low, high = tensor.double().min().item(), tensor.double().max().item()
    drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    if tensor.is_floating_point():
        drawn = low + (high - low or 1.0) * drawn  # a constant example says nothing about the range
    else:
        drawn = (low + (high - low + 1) * drawn).floor().clamp(low, high)
    return torch.empty_like(tensor).copy_(drawn)
