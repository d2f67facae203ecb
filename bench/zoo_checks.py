"""Does the result compute what the model computes? For `bench.zoo`, on several inputs, and never of nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bench.zoo_rows import Check
from bench.zoo_weights import random_images
from prunekit.comparison import Comparison, check_equal
from prunekit.errors import InputError, WrongOutputError, first_line

#: The largest relative RMS of an output that counts as right.
MOST = 1e-4
_ROUNDING = 1e-6  # relative noise on the input that shows whether an end is discontinuous


def allowed_error(own_rounding: float | None) -> float:
    """Return the largest error that counts as right for a model of such a rounding of its own.

    Two computations of one network in float32 are each as far from the exact result, so up to twice as far apart.
    """
    return max(MOST, 2 * (own_rounding or 0.0))


def compare(expected: object, actual: object) -> Comparison:
    """Compare outputs of any nesting; WrongOutputError where they differ in kind, or hold nothing to compare."""
    return check_equal(expected, actual, "the result", math.inf)


def input_effect(model: nn.Module, x: Tensor) -> float | None:
    """Return how much another image changes the outputs, in relative RMS: near 0, any comparison would succeed.

    None where the two outputs cannot be compared, as of detectors that find another number of objects.
    """
    try:
        error = compare(model(x), model(random_images(*x.shape[:1], *x.shape[2:]))).relative_rms
    except WrongOutputError:
        return None
    return error if math.isfinite(error) else None


def own_rounding(model: nn.Module, x: Tensor) -> float | None:
    """Return the relative RMS between a float32 model's outputs and those of its float64 copy; None without such one.

    With random weights some models amplify rounding a thousandfold: run in another memory format they differ from
    themselves by as much.
    """
    try:
        exact = copy.deepcopy(model).double()(x.double())
        rounded = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, model(x))
        return compare(exact, rounded).relative_rms
    except Exception:  # foreign code, in a dtype that it may never have seen
        return None


def check_input(model: nn.Module, fast: nn.Module, inputs: Sequence[Tensor], parts: Sequence[str]) -> Check:
    """Compare on the first of the inputs that the model itself takes.

    Args:
        model: What is right.
        fast: The result.
        inputs: Candidates, the one that finds most first.
        parts: Submodules in front of a discontinuous end.
    """
    unsupported = Check(shape=tuple(inputs[0].shape))
    for x in inputs:
        try:
            expected = model(x)
        except Exception as error:  # foreign code
            unsupported = Check(shape=tuple(x.shape), unsupported=f"{type(error).__name__}: {first_line(error)}")
            continue
        return _check(model, fast, x, expected, parts)
    return unsupported


def _check(model: nn.Module, fast: nn.Module, x: Tensor, expected: object, parts: Sequence[str]) -> Check:
    shape = tuple(x.shape)
    try:
        actual = fast(x)
    except InputError as error:
        return Check(shape=shape, refused=first_line(error))
    except Exception as error:  # any other is a finding
        return Check(shape=shape, problem=f"{type(error).__name__}: {first_line(error)}")
    direct = _checked(shape, "outputs", lambda: compare(expected, actual))
    is_right = direct.error is not None and direct.error <= MOST
    if is_right or not parts or not has_discontinuous_end(model, x, expected):
        return direct
    compared = ", ".join(parts)
    return _checked(shape, compared, lambda: compare(part_outputs(model, parts, x), part_outputs(fast, parts, x)))


def _checked(shape: tuple[int, ...], compared: str, comparing: Callable[[], Comparison]) -> Check:
    try:
        found = comparing()
    except (WrongOutputError, AttributeError) as error:  # the latter: the result has no such submodule
        return Check(shape=shape, compared=compared, problem=first_line(error))
    rms = found.relative_rms
    if not math.isfinite(rms):
        return Check(shape=shape, compared=compared, problem=f"Expected finite outputs, got an error of {rms}.")
    return Check(shape=shape, compared=compared, error=rms, tensors=found.tensors, elements=found.elements)


def has_discontinuous_end(model: nn.Module, x: Tensor, expected: object) -> bool:
    """Return whether noise as large as rounding changes the model's own outputs beyond what counts as right."""
    try:
        return not compare(expected, model(x * (1 + _ROUNDING * torch.randn_like(x)))).relative_rms <= MOST
    except WrongOutputError:
        return True


def part_outputs(model: nn.Module, parts: Sequence[str], x: Tensor) -> dict[str, list[object]]:
    """Return what the named submodules return while the model runs on x, call by call.

    Raises:
        AttributeError: The model has no such submodule.
    """
    found: dict[str, list[object]] = {name: [] for name in parts}
    with ExitStack() as stack:
        for name in parts:

            def keep(module: nn.Module, args: Any, output: object, name: str = name) -> None:
                found[name].append(output)

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        model(x)
    return found
