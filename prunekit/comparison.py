"""The one gate through which every fast path goes: are two outputs equal, and how much was compared?

A comparison counts the tensors and elements that it looked at, so that a proof of nothing can be told from a proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import WrongOutputError
from prunekit.structure import flatten

#: Largest relative RMS of the difference of two ways to compute the same in a dtype. float32: networks of a hundred
#: layers reach 3e-6, so this is rounding and no more. The half types: 2^-11 and 2^-8 a rounding, accumulated over
#: layers; a path that also knows the exact result compares with that instead.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 8e-2,
    torch.complex64: 1e-4,
    torch.complex128: 1e-10,
}
#: That of float32, which the engine computes in.
MAX_RELATIVE_RMS = TOLERANCES[torch.float32]


def is_half(dtype: torch.dtype) -> bool:
    """Return whether a dtype is float16 or bfloat16."""
    return dtype.is_floating_point and dtype.itemsize == 2


@dataclass(frozen=True)
class Comparison:
    """What was compared, and how far apart it was.

    Attributes:
        tensors: Tensors that hold at least one element.
        elements: Numbers in all of them.
        relative_rms: The largest over the tensors: root mean square of the difference over that of the expected
            tensor; inf where integers or booleans differ, or where nan or infinity stand in one of the two only.
        largest: The largest |difference| of two numbers.
        relative: The largest over the tensors of its largest |difference| over its largest magnitude.
        inputs: How many inputs the model was run on.
        worst: Where the tensor with the largest `relative_rms` is, such as `["boxes"]`; "" for a lone tensor.
    """

    tensors: int = 0
    elements: int = 0
    relative_rms: float = 0.0
    largest: float = 0.0
    relative: float = 0.0
    inputs: int = 1
    worst: str = ""

    def __add__(self, other: Comparison) -> Comparison:
        """Join comparisons on two sets of inputs: tensors and elements add up, differences are the larger ones."""
        return Comparison(
            self.tensors + other.tensors,
            self.elements + other.elements,
            max(self.relative_rms, other.relative_rms),
            max(self.largest, other.largest),
            max(self.relative, other.relative),
            self.inputs + other.inputs,
            self.worst if self.relative_rms >= other.relative_rms else other.worst,
        )

    def __str__(self) -> str:
        """Return what was compared in words."""
        return (
            f"{_count(self.elements, 'number')} in {_count(self.tensors, 'tensor')} of {_count(self.inputs, 'input')}"
        )


def compare(expected: object, actual: object) -> Comparison:
    """Compare two values of any nesting, tensor by tensor.

    Integers and booleans are to be equal; nan and infinities are to stand in the same places.

    Raises:
        WrongOutputError: they nest differently, or a tensor has another shape or dtype, or a value that is no tensor
            differs.
    """
    (wants, structure), (gots, other) = flatten(expected), flatten(actual)
    difference = structure.differs_from(other)
    if difference:
        raise WrongOutputError(f"{difference} in the outputs.")
    return _compare_all(wants, gots, list(structure.paths()))


def check_equal(expected: object, actual: object, what: str, most: float | None = None) -> Comparison:
    """Compare, and raise where two values differ or hold nothing to compare.

    Args:
        expected: the reference's output.
        actual: that of `what`.
        what: for the message, such as "the accelerated model".
        most: the largest relative RMS allowed; None takes the loosest of the tensors' dtypes in `TOLERANCES`.

    Raises:
        WrongOutputError: they differ, or there is no number to compare.
    """
    found = check_within(expected, actual, what, tolerance(expected) if most is None else most)
    if not found.elements:
        raise WrongOutputError(f"{what} cannot be compared with the original: the outputs hold no number.")
    return found


def check_within(
    expected: object, actual: object, what: str, allowed: float, original: str = "the original"
) -> Comparison:
    """Compare, and raise where two values differ by more than `allowed`; they may hold nothing to compare.

    Args:
        expected: the output of `original`.
        actual: that of `what`.
        what: for the message.
        allowed: the largest relative RMS.
        original: for the message.

    Raises:
        WrongOutputError: they differ.
    """
    try:
        found = compare(expected, actual)
    except WrongOutputError as error:
        raise WrongOutputError(f"{what} differs from {original}: {error}") from error
    if not found.relative_rms <= allowed:
        place = f" at {found.worst}" if found.worst else ""
        raise WrongOutputError(
            f"{what} differs from {original} by {found.relative_rms:.3g} relative RMS{place}; "
            f"expected at most {allowed:g}."
        )
    return found


def tolerance(value: object) -> float:
    """Return the loosest tolerance of the dtypes of a value's tensors; float32's where there are none."""
    found = [TOLERANCES[t.dtype] for t in flatten(value)[0] if t.dtype in TOLERANCES]
    return max(found, default=MAX_RELATIVE_RMS)


def relative_rms(expected: Tensor, actual: Tensor) -> float:
    """Return the root mean square of the difference, relative to that of `expected`.

    Infinite where the shapes differ, or where nan or infinity stand in one of the two only; 0 for tensors without
    elements.
    """
    return _compare_tensors(expected, actual)[0] if expected.shape == actual.shape else float("inf")


def _compare_all(wants: Sequence[Tensor], gots: Sequence[Tensor], paths: Sequence[str]) -> Comparison:
    total = Comparison()
    for want, got, path in zip(wants, gots, paths, strict=True):
        place = f" at {path}" if path else ""
        if want.shape != got.shape:
            raise WrongOutputError(f"Expected shape {list(want.shape)}, got {list(got.shape)}{place} in the outputs.")
        if want.dtype != got.dtype:
            raise WrongOutputError(f"Expected {want.dtype}, got {got.dtype}{place} in the outputs.")
        if want.numel():
            rms, largest, relative = _compare_tensors(want, got)
            total += Comparison(1, want.numel(), rms, largest, relative, 0, path)
    return total


def _compare_tensors(want: Tensor, got: Tensor) -> tuple[float, float, float]:
    """Return relative RMS, largest and relative largest difference of two tensors of one shape."""
    if not want.numel():
        return 0.0, 0.0, 0.0
    want, got = want.detach(), got.detach().to(want.device)
    is_number = want.is_floating_point() or want.is_complex()
    if not is_number or not (got.is_floating_point() or got.is_complex()):
        return (0.0, 0.0, 0.0) if torch.equal(want, got) else (float("inf"),) * 3
    wide = torch.complex128 if want.is_complex() or got.is_complex() else torch.float64
    want, got = want.to(wide), got.to(wide)
    finite = want.isfinite()
    if not torch.equal(finite, got.isfinite()) or not torch.equal(
        want[~finite].nan_to_num(0.0, 1.0, -1.0) if not want.is_complex() else want[~finite].isnan(),
        got[~finite].nan_to_num(0.0, 1.0, -1.0) if not got.is_complex() else got[~finite].isnan(),
    ):
        return (float("inf"),) * 3
    want, got = want[finite], got[finite]
    if not want.numel():
        return 0.0, 0.0, 0.0
    difference = (got - want).abs()
    scale, most = want.abs().square().mean().sqrt().clamp(min=1e-30), want.abs().max()
    largest = float(difference.max())
    return float(difference.square().mean().sqrt() / scale), largest, largest / float(most) if most > 0 else largest


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
