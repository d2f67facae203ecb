"""Comparing two ways to compute the same where rounding decides what comes out.

A detector ends in a threshold, a top-k and a suppression of overlapping boxes; a segmentation net in an argmax. Two
correct ways to compute such a model differ by rounding before these operators, and then arbitrarily far behind them: of
two equal scores the other comes first. And where the example holds nothing to be found, there is no number to compare.

So the fast way runs first, and the inputs and outputs of its discontinuous operators are kept. Then the original runs:
each of its discontinuous operators must receive what that of the fast way received, up to rounding, and returns what
that one returned. With the same decisions everything behind is continuous again and is compared as well. This works on
operators as they are dispatched, so loops and branches over values are no obstacle: a branch asks for the number of a
tensor, which is such an operator.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit.comparison import (
    MAX_RELATIVE_RMS,
    Comparison,
    check_equal,
    check_within,
    compare,
    relative_rms,
    tolerance,
)
from prunekit.errors import WrongOutputError
from prunekit.structure import flatten, map_tensors, tensors_of

# Steps between numbers of floating point. All operators that make integers, booleans or Python's numbers of them
# (comparisons, topk, sort, argmax, nms, nonzero, casts, item) are found by what they return.
_STEPS = {
    "round", "floor", "ceil", "trunc", "frac", "sign", "sgn", "heaviside", "remainder", "fmod", "floor_divide",
    "gt", "ge", "lt", "le", "eq", "ne", "fake_quantize_per_tensor_affine", "grid_sampler_2d", "grid_sampler_3d",
}  # fmt: skip
# They pick numbers out of a tensor by decisions made elsewhere: what flows into them is compared, nothing is replayed.
_PICKS = {"index", "index_select", "gather", "masked_select", "take"}
# They return integers that say where the numbers came from, and the numbers are continuous.
_CONTINUOUS = {"max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d"}


@dataclass(frozen=True)
class Decision:
    """A discontinuous operator as it ran.

    Attributes:
        operator: Its name, such as "aten.topk.default".
        inputs: Copies of its tensors.
        arguments: How they nest among its other arguments (`prunekit.structure.Structure`).
        outputs: What it returned; None for an operator whose inputs are only compared.
    """

    operator: str
    inputs: list[Tensor]
    arguments: Any
    outputs: Any

    def fits(self, other: Decision) -> bool:
        """Tell whether two are the same operator with the same options on tensors of the same shapes and dtypes."""
        return (
            self.operator == other.operator
            and self.arguments.differs_from(other.arguments) is None
            and all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in zip(self.inputs, other.inputs, strict=True))
        )

    def difference(self, other: Decision) -> float:
        """Return the largest relative RMS between the tensors of two that fit; inf where integers differ."""
        pairs = zip(self.inputs, other.inputs, strict=True)
        return max((relative_rms(a, b) if a.is_floating_point() else _exact(a, b) for a, b in pairs), default=0.0)


@dataclass(frozen=True)
class ContinuousComparison:
    """What was compared up to decisions.

    Attributes:
        comparison: Of the tensors that flow into discontinuous operators, and of the outputs.
        operators: The discontinuous operators whose decisions were shared, without repetition.
    """

    comparison: Comparison
    operators: list[str] = field(default_factory=list)


def check_continuous(
    original: Callable[[], object], fast: Callable[[], object], what: str, most: float | None = None
) -> ContinuousComparison:
    """Compare two ways to compute the same, with the decisions of discontinuous operators shared.

    Args:
        original: the reference; it changes nothing.
        fast: the other way; it runs first, once.
        what: `fast` in words for the message, such as "the accelerated model".
        most: the largest relative RMS allowed; None takes that of the outputs' dtypes.

    Raises:
        WrongOutputError: the inputs of a discontinuous operator differ, or the outputs do although all decisions are
            shared, or there was no number to compare.
    """
    with _Recording() as recording:
        actual = fast()
    allowed = most if most is not None else max(MAX_RELATIVE_RMS, tolerance(actual))
    with _Replay(recording.decisions, allowed) as replay:
        expected = original()
    if replay.wrong:
        raise WrongOutputError(f"{what} differs from the original: {replay.wrong}.")
    found = replay.comparison + check_within(expected, actual, what, allowed)
    if not found.elements:
        raise WrongOutputError(f"{what} cannot be compared with the original: the outputs hold no number.")
    return ContinuousComparison(found, list(dict.fromkeys(replay.operators)))


def check_same(
    expected: object,
    original: Callable[[], object],
    fast: Callable[[], object],
    what: str,
    most: float | None = None,
) -> ContinuousComparison:
    """Compare outputs as they are, and with shared decisions where that finds a difference or nothing to compare.

    Args:
        expected: what `original` returned.
        original: the reference; it changes nothing. Called again only where decisions are to be shared.
        fast: the other way.
        what: `fast` in words for the message, such as "the accelerated model".
        most: the largest relative RMS allowed; None takes that of the outputs' dtypes.

    Returns:
        What was compared; its `operators` are empty where the outputs are equal as they are.

    Raises:
        WrongOutputError: they differ although all decisions are shared, or there was no number to compare.
    """
    try:
        return ContinuousComparison(check_equal(expected, fast(), what, most))
    except WrongOutputError as error:
        try:
            return check_continuous(original, fast, what, most)
        except WrongOutputError as deeper:
            raise (deeper if "flows into" in str(deeper) else error) from deeper


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every operator, and hands the discontinuous ones over."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, _name(func)
        if name in _CONTINUOUS or not any(t.is_floating_point() for t in tensors_of((args, kwargs))):
            return func(*args, **kwargs)
        # An operator in place is no longer seen with its inputs afterwards.
        is_step = name in _STEPS or name in _PICKS
        before = _call(func, *_copied((args, kwargs))) if is_step and func._schema.is_mutable else None
        outputs = func(*args, **kwargs)
        if not is_step and not _is_decision(outputs):
            return outputs
        return self.decide(before or _call(func, args, kwargs), outputs, args)

    @abstractmethod
    def decide(self, call: Decision, outputs: Any, args: Sequence[Any]) -> Any:
        """Return what a discontinuous operator, which returned `outputs`, is to return."""


class _Recording(_Watch):
    """Keeps every discontinuous operator that runs, in copies: whoever receives the tensors may write into them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.decisions: list[Decision] = []

    def decide(self, call: Decision, outputs: Any, args: Sequence[Any]) -> Any:
        kept = None if _name(call.operator) in _PICKS else _copied(outputs)
        self.decisions.append(replace(call, inputs=[t.detach().clone() for t in call.inputs], outputs=kept))
        return outputs


class _Replay(_Watch):
    """Returns recorded decisions wherever an operator receives what the recorded one received."""

    def __init__(self, decisions: Sequence[Decision], allowed: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.open, self.allowed = list(decisions), allowed
        self.comparison, self.wrong = Comparison(inputs=0), ""
        self.operators: list[str] = []

    def decide(self, call: Decision, outputs: Any, args: Sequence[Any]) -> Any:
        decision = self._recorded(call)
        if decision is None or decision.outputs is None:
            return outputs
        self.operators.append(decision.operator)
        if isinstance(outputs, Tensor) and any(outputs is arg for arg in args):  # in place
            return _overwritten(outputs, decision.outputs)
        return _copied(decision.outputs)

    def _recorded(self, call: Decision) -> Decision | None:
        """Take the recorded decision on the same numbers, and count these as compared."""
        fitting = [decision for decision in self.open if decision.fits(call)]
        if not fitting:
            return None  # the fast way has no such operator, or has another for it
        differences = [call.difference(decision) for decision in fitting]
        best = min(range(len(fitting)), key=differences.__getitem__)
        if not differences[best] <= self.allowed:
            self.wrong = self.wrong or (
                f"what flows into {call.operator} differs by {differences[best]:.3g} relative RMS; "
                f"expected at most {self.allowed:g}"
            )
            return None
        self.open = [decision for decision in self.open if decision is not fitting[best]]
        self.comparison += _compared(call.inputs, fitting[best].inputs)
        return fitting[best]


def _call(func: Any, args: Any, kwargs: Any) -> Decision:
    tensors, arguments = flatten((tuple(args), dict(kwargs)))
    return Decision(str(func), tensors, arguments, None)


def _is_decision(outputs: object) -> bool:
    """Tell whether an operator on floating point returned integers, booleans or a number of Python."""
    tensors = tensors_of(outputs)
    if not tensors:
        return isinstance(outputs, (bool, int, float))
    return any(not (t.is_floating_point() or t.is_complex()) for t in tensors)


def _compared(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Comparison:
    pairs = [(a, b) for a, b in zip(expected, actual, strict=True) if a.is_floating_point()]
    return replace(compare([a for a, _ in pairs], [b for _, b in pairs]), inputs=0)


def _copied(value: Any) -> Any:
    return map_tensors(lambda tensor: tensor.detach().clone(), value)


def _overwritten(tensor: Tensor, numbers: Tensor) -> Tensor:
    with torch.no_grad():
        return tensor.copy_(numbers)


def _exact(a: Tensor, b: Tensor) -> float:
    return 0.0 if torch.equal(a, b) else float("inf")


def _name(func: Any) -> str:
    """Return an operator's name without namespace and overload; that in place has its counterpart's."""
    return str(func).split(".")[1].removesuffix("_") if "." in str(func) else str(func)
