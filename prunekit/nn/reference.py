"""What a fast path is held to: the model's own outputs, on the example and on other numbers, and how far is too far.

One rule for all dtypes. A model that computes in float32 or float64 is compared with itself. One that computes in a
half type somewhere (its weights, its inputs, an autocast region in its forward) is rounded itself, so the reference is
its float32 copy with autocast off: a path that computes in float32 is held to that within float32's tolerance, and one
that computes in the half type may be twice as far from it as the model is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit.comparison import TOLERANCES, Comparison, compare, is_half
from prunekit.discontinuous import check_continuous
from prunekit.errors import WrongOutputError, first_line
from prunekit.nn.calls import Call
from prunekit.nn.model_copies import copied
from prunekit.structure import flatten, map_tensors

_autocast_lock = threading.RLock()


class NotComparable(Exception):
    """There is nothing to hold a fast path to; the message is why, without a full stop."""


@dataclass
class Reference:
    """Calls of a model with what it answered.

    Attributes:
        calls: The example, and one of other numbers where the model runs on them.
        expected: The model's own outputs.
        exact: Those of its float32 copy where the model computes in a half type; else the same.
        dtype: The coarsest floating-point type that the model computes in.
        float32: The float32 copy, or None.
        notes: Why there is no second call.
        model: What computed the exact outputs, to be run again where decisions are to be shared; None: it is not there.
        shared: Discontinuous operators whose decisions were shared in a comparison (see prunekit.discontinuous).
        num_dynamic: How often values make shapes on the example, as nonzero and indexing by booleans do.
    """

    calls: list[Call]
    expected: list[Any]
    exact: list[Any]
    dtype: torch.dtype
    float32: nn.Module | None = None
    notes: list[str] = field(default_factory=list)
    model: nn.Module | None = None
    shared: dict[str, None] = field(default_factory=dict)
    num_dynamic: int = 0

    @property
    def is_half(self) -> bool:
        """Whether the model computes in a half type."""
        return self.dtype.itemsize == 2

    @property
    def example(self) -> Call:
        """The user's call."""
        return self.calls[0]

    def check(self, fast: Callable[[Call], Any]) -> Comparison:
        """Compare on every call, and return what was compared with the model itself.

        Where the outputs differ, or hold no number, they are compared once more with the decisions of discontinuous
        operators shared.

        Args:
            fast: answers a call; it computes in float32, or in float64 where the model does.

        Raises:
            WrongOutputError: it differs by more than rounding, or there was no number to compare.
        """
        try:
            return self._check_outputs(fast)
        except WrongOutputError as error:
            if self.model is None or self.is_half:
                raise
            try:
                return self._check_with_decisions(self.model, fast)
            except WrongOutputError as deeper:
                raise (deeper if "flows into" in str(deeper) else error) from deeper

    def _check_with_decisions(self, model: nn.Module, fast: Callable[[Call], Any]) -> Comparison:
        found = Comparison(inputs=0)
        for call in self.calls:
            same = check_continuous(partial(call.run, model), partial(fast, call), "it", self._most)
            found += same.comparison
            self.shared |= dict.fromkeys(same.operators)
        return found

    @property
    def _most(self) -> float:
        return TOLERANCES[self.dtype if not self.is_half else torch.float32] + self._rounding_at_the_door()

    def _check_outputs(self, fast: Callable[[Call], Any]) -> Comparison:
        answers = [fast(call) for call in self.calls]
        found, most = _sum_of(self.exact, answers), self._most
        if not found.relative_rms <= most:
            place = f" at {found.worst}" if found.worst else ""
            original = "the original" if not self.is_half else "the original in float32"
            raise WrongOutputError(
                f"it differs from {original} by {found.relative_rms:.3g} relative RMS{place}; expected at most {most:g}"
            )
        if not found.elements:
            raise WrongOutputError("there is no number in the outputs to compare")
        return _sum_of(self.expected, answers) if self.is_half else found

    def difference(self, fast: Callable[[Call], Any]) -> Comparison:
        """Return how far the answers are from the model's own, whatever that is."""
        return _sum_of(self.expected, [fast(call) for call in self.calls])

    def _rounding_at_the_door(self) -> float:
        halves = {t.dtype for t in flatten(self.expected)[0] if is_half(t.dtype)}
        return max((torch.finfo(dtype).eps for dtype in halves), default=0.0)


def reference_of(model: nn.Module, example: Call, outputs: Any) -> Reference:
    """Run a model, a copy that may change its state, again on the example and on other numbers.

    Args:
        model: in eval mode.
        example: the user's call.
        outputs: the model's on it.

    Raises:
        NotComparable: the outputs change from run to run, or hold no number, or float32 gives something else.
    """
    again, dtypes, num_dynamic = _observed(model, example)
    _check_repeats(model, outputs, again)
    if not any(t.numel() for t in flatten(outputs)[0]):
        _check_decides(model, example)
    calls, expected, notes = [example], [outputs], []
    other = example.random()
    try:
        answer = other.run(model)
        _check_repeats(model, answer, other.run(model))
        if all(bool(t.isfinite().all()) for t in flatten(answer)[0] if t.is_floating_point() or t.is_complex()):
            calls.append(other)
            expected.append(answer)
        else:
            notes.append("compared on the example only: the model's output on random numbers is not finite")
    except Exception as error:  # a forward may refuse what it does not know
        notes.append(f"compared on the example only: the model does not run on random numbers ({first_line(error)})")
    dtype = _coarsest(dtypes | {t.dtype for t in (*model.parameters(), *example.tensors, *flatten(outputs)[0])})
    reference = Reference(calls, expected, expected, dtype, None, notes, model, num_dynamic=num_dynamic)
    if reference.is_half:
        _add_float32(reference, model)
    return reference


@contextmanager
def without_autocast() -> Iterator[None]:
    """Let the autocast regions that this thread enters within the block have no effect."""
    here, kind = threading.get_ident(), torch.autocast
    enter, leave = kind.__enter__, kind.__exit__

    def enter_unless_here(region: Any) -> Any:
        return region if threading.get_ident() == here else enter(region)  # type: ignore[no-untyped-call]

    def leave_unless_here(region: Any, *error: Any) -> Any:
        return None if threading.get_ident() == here else leave(region, *error)

    with _autocast_lock:
        kind.__enter__, kind.__exit__ = enter_unless_here, leave_unless_here  # type: ignore[method-assign]
        try:
            yield
        finally:
            kind.__enter__, kind.__exit__ = enter, leave  # type: ignore[method-assign]


def widened(tensor: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32, others as they are."""
    return tensor.float() if is_half(tensor.dtype) else tensor


def float32_copy(model: nn.Module) -> nn.Module:
    """Return a frozen copy whose half-precision parameters and buffers are float32."""
    wide = copied(model)
    for module in wide.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and is_half(tensor.dtype):
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(tensor.float(), False) if is_parameter else tensor.float()  # type: ignore[assignment]
    return wide


class _DtypesSeen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the floating-point types that operators return, and how many make shapes of values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()
        self.num_dynamic = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.dynamic_output_shape in func.tags:
            is_index = func is torch.ops.aten.index.Tensor  # by integers it makes no shape of values
            self.num_dynamic += not is_index or any(t is not None and t.dtype == torch.bool for t in args[1])
        if isinstance(result, Tensor):
            self.dtypes.add(result.dtype)
        elif isinstance(result, (tuple, list)):
            self.dtypes.update(t.dtype for t in result if isinstance(t, Tensor))
        return result


def _observed(model: nn.Module, example: Call) -> tuple[Any, set[torch.dtype], int]:
    """Return the outputs, the types of all values on the way to them, and how often values make shapes there."""
    seen = _DtypesSeen()
    try:
        with seen:
            outputs = example.run(model)
    except Exception:  # not everything runs under such a mode; its types are then those at its borders
        return example.run(model), set(), 0
    return outputs, seen.dtypes, seen.num_dynamic


def _coarsest(dtypes: set[torch.dtype]) -> torch.dtype:
    order = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    return next((dtype for dtype in order if dtype in dtypes), torch.float32)


def _check_repeats(model: nn.Module, first: Any, second: Any) -> None:
    try:
        found = compare(first, second)
    except WrongOutputError:
        is_repeated = False
    else:
        dtype = _coarsest({t.dtype for t in flatten(first)[0]})
        is_repeated = found.relative_rms <= TOLERANCES[dtype] / 10
    if not is_repeated:
        raise NotComparable(
            "two runs of the model itself on the same input differ (dropout that is always on, other randomness, or a "
            "state that it keeps), so nothing could be compared"
        )


def _check_decides(model: nn.Module, example: Call) -> None:
    """See that a model without a number in its outputs has some that flow into discontinuous operators.

    Raises:
        NotComparable: it has none.
    """
    try:
        check_continuous(partial(example.run, model), partial(example.run, model), "it")
    except WrongOutputError as error:
        raise NotComparable("the model returns no number on the example, so nothing could be compared") from error


def _add_float32(reference: Reference, model: nn.Module) -> None:
    wide = float32_copy(model)
    try:
        with without_autocast():
            exact = [call.map(widened).run(wide) for call in reference.calls]
        found = _sum_of(reference.expected, exact)
    except Exception as error:  # a forward may name its dtype
        raise NotComparable(
            f"the model computes in {dtype_name(reference.dtype)} and does not run in float32 ({first_line(error)})"
        ) from error
    if not found.relative_rms <= TOLERANCES[reference.dtype]:
        raise NotComparable(
            f"the model computes in {dtype_name(reference.dtype)} and differs from itself in float32 by "
            f"{found.relative_rms:.2g} relative RMS"
        )
    reference.exact, reference.float32 = exact, wide


def _sum_of(expected: list[Any], answers: list[Any]) -> Comparison:
    """Compare call by call; where one of two floating-point tensors is half, both are widened."""
    total = Comparison(inputs=0)
    for want, got in zip(expected, answers, strict=True):
        total += compare(map_tensors(widened, want), map_tensors(widened, got))
    return total


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without its module."""
    return str(dtype).removeprefix("torch.")
