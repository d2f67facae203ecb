"""The proof: both models in float64 on the example and on random inputs of several sizes, layer by layer on failure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.compaction.certificate import Difference
from prunekit.compaction.choosing import Choice
from prunekit.errors import InputError, WrongOutputError

#: Two ways to add up the same numbers in float64 differ by about 1e-15 of the largest.
MAX_RELATIVE_DIFFERENCE = 1e-10
_MAX_SIDE_STEP = 64


class DoesNotRunError(Exception):
    """The cut model does not run; `layer` is the module that raised."""

    def __init__(self, layer: str, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.layer = layer


@dataclass(frozen=True)
class Trial:
    """An input in float64, and what the original answers to it."""

    name: str
    inputs: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]


def in_float64(model: nn.Module) -> nn.Module:
    """Return a float64 copy."""
    return copy.deepcopy(model).double()


@torch.no_grad()
def trials(original: nn.Module, example: Sequence[Tensor]) -> tuple[list[Trial], list[str]]:
    """Run the original, which is in float64, on the example and on random inputs of several sizes.

    Returns:
        The trials, and a note on sizes at which the model does not run.

    Raises:
        InputError: An output on the example is not finite, so that nothing could be compared.
    """
    wide = tuple(x.double() if x.is_floating_point() else x for x in example)
    candidates = [("example", wide), ("random", _random(wide, 0))]
    candidates += [("random", _random(resized, i + 1)) for i, resized in enumerate(_other_sizes(wide))]
    found: list[Trial] = []
    fails: list[str] = []
    for kind, inputs in candidates:
        name = f"{kind} {' and '.join('×'.join(map(str, x.shape)) for x in inputs)}"
        try:
            expected = _tensors(original(*inputs))
        except Exception as error:  # a forward may only take one size
            fails.append(f"the model does not run on {name} ({type(error).__name__})")
            continue
        if not all(bool(y.isfinite().all()) for y in expected):
            if kind == "example":
                raise InputError(
                    "Expected a model whose outputs on the example input are finite, because they are compared with "
                    f"the compacted model's, but {type(original).__name__} answers nan or infinity."
                )
            fails.append(f"the outputs on {name} are not finite")
            continue
        found.append(Trial(name, inputs, expected))
    return found, fails


@torch.no_grad()
def differences(compacted: nn.Module, rows: Sequence[Trial]) -> list[Difference]:
    """Run the compacted model, in float64, on every trial.

    Raises:
        DoesNotRunError: It raises where the original does not.
    """
    found = []
    for trial in rows:
        with _watching(compacted) as running:
            try:
                outputs = _tensors(compacted(*trial.inputs))
            except Exception as error:
                raise DoesNotRunError(running[-1] if running else "", error) from error
        found.append(difference(trial.name, trial.expected, outputs))
    return found


def difference(name: str, expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Difference:
    """Compare outputs."""
    largest = relative = 0.0
    for a, b in zip(expected, actual, strict=True):
        if a.shape != b.shape:
            return Difference(name, float("inf"), float("inf"))
        if not a.numel() or not a.is_floating_point():
            continue
        worst = float((a - b).abs().max())
        worst = float("inf") if worst != worst else worst
        scale = float(a.abs().max())
        largest = max(largest, worst)
        relative = max(relative, worst / scale if scale > 0 else worst)
    return Difference(name, largest, relative)


def is_exact(rows: Sequence[Difference]) -> bool:
    """Tell whether all differences are rounding."""
    return all(row.relative <= MAX_RELATIVE_DIFFERENCE for row in rows)


@torch.no_grad()
def raise_first_difference(original: nn.Module, compacted: nn.Module, choice: Choice, trial: Trial) -> None:
    """Find the first layer whose output differs, and raise WrongOutputError with its name."""
    expected, actual = _layer_outputs(original, trial, choice), _layer_outputs(compacted, trial, choice)
    for (name, call, a), (_, _, b) in zip(expected, actual, strict=False):
        value = choice.flow.outputs[name][call]
        if value.dim is not None:
            keep = torch.from_numpy(np.flatnonzero(choice.stays(value.labels)))
            a = a.index_select(value.dim, keep.to(a.device))
        found = difference(name, (a,), (b,))
        if not found.relative <= MAX_RELATIVE_DIFFERENCE:
            raise WrongOutputError(
                f"the compacted model differs from the masked one, first at layer {name!r}: by {found.relative:.3g} of "
                f"its largest output, on input {trial.name}; expected at most {MAX_RELATIVE_DIFFERENCE:g} in float64."
            )
    raise WrongOutputError(
        f"the compacted model differs from the masked one behind its last layer on input {trial.name}; expected at "
        f"most {MAX_RELATIVE_DIFFERENCE:g} in float64."
    )


def _layer_outputs(model: nn.Module, trial: Trial, choice: Choice) -> list[tuple[str, int, Tensor]]:
    """Return (layer, call, output) in running order, where the layer's constants have not moved behind it."""
    moved = {layer.name for layer in choice.flow.layers.values() if layer.norm is not None}
    found: list[tuple[str, int, Tensor]] = []
    calls: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            call = calls[name] = calls.get(name, -1) + 1
            if isinstance(output, Tensor) and call < len(choice.flow.outputs[name]):
                found.append((name, call, output.clone()))

        return hook

    names = [
        name for name in choice.flow.outputs if name not in moved and not list(model.get_submodule(name).children())
    ]
    hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        model(*trial.inputs)
    finally:
        for handle in hooks:
            handle.remove()
    return found


@contextmanager
def _watching(model: nn.Module) -> Iterator[list[str]]:
    """Yield the names of the modules that run, innermost last; what raised is still there afterwards."""
    running: list[str] = []
    hooks = []

    def leave(module: nn.Module, args: object, output: object) -> None:
        running.pop()

    for name, module in model.named_modules():

        def enter(module: nn.Module, args: object, name: str = name) -> None:
            running.append(name)

        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield running
    finally:
        for handle in hooks:
            handle.remove()


def _tensors(outputs: object) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))


def _random(inputs: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) if x.is_floating_point() else x
        for x in inputs
    )


def _other_sizes(inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Yield inputs of a smaller and a larger size, not square, in steps of the power of two in the example's size."""
    scales: tuple[Callable[[int], int], ...] = (lambda n: max(1, n // 2), lambda n: n + 1)
    for scale in scales:
        resized = []
        for x in inputs:
            shape = list(x.shape)
            if x.dim() == 4:
                steps = [min(size & -size, _MAX_SIDE_STEP) for size in shape[2:]]
                shape[2] = scale(shape[2] // steps[0]) * steps[0]
                shape[3] = (scale(shape[3] // steps[1]) + 1) * steps[1]
            resized.append(x.new_zeros(shape))
        yield tuple(resized)
