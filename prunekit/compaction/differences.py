"""The proof of a cut: both models on every trial, and the first layer that differs where one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.compaction.certificate import Difference
from prunekit.compaction.keep_set import Choice
from prunekit.compaction.proving import Proof, Trial, run
from prunekit.comparison import compare, tolerance
from prunekit.discontinuous import check_continuous
from prunekit.errors import WrongOutputError
from prunekit.graph.calls import Call
from prunekit.structure import in_float64

# A compacted model may be this much further from the exact result than the original is: it adds up in another order.
_OF_ORIGINAL_ERROR = 10.0


class DoesNotRunError(Exception):
    """The cut model does not run; `layer` is the module that raised."""

    def __init__(self, layer: str, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.layer = layer


def differences(compacted: nn.Module, proof: Proof, trials: tuple[Trial, ...] | None = None) -> list[Difference]:
    """Run the compacted model, in the proof's dtype, on trials; None takes all.

    Raises:
        DoesNotRunError: It raises where the original does not.
    """
    found = []
    for trial in proof.trials if trials is None else trials:
        with _watching(compacted) as running:
            try:
                found.append(proof.difference(compacted, trial))
            except Exception as error:
                raise DoesNotRunError(running[-1] if running else "", error) from error
    return found


def own_difference(proof: Proof, masked: nn.Module, compacted: nn.Module, example: Call) -> Difference:
    """Compare both as they are on the example, where rounding differs, within the outputs' dtypes' tolerance.

    Beyond it, the compacted model may be as far from the exact result as the original is, about.

    Raises:
        WrongOutputError: They differ by more.
    """
    name = f"example {example}"
    expected, actual = (run(model, example, False) for model in (masked, compacted))
    found = compare(expected, actual)
    if found.relative_rms <= tolerance(expected):
        return Difference.of(name, found)
    first, second = (partial(run, model, example, False) for model in (masked, compacted))
    try:
        return Difference.of(name, check_continuous(first, second, "the compacted model").comparison)
    except WrongOutputError:
        exact = in_float64(proof.trials[0].expected if proof.is_wide else expected)
        theirs, ours = (compare(exact, in_float64(outputs)).relative_rms for outputs in (expected, actual))
        if not ours <= _OF_ORIGINAL_ERROR * theirs:
            raise
        return Difference.of(name, found)


@torch.no_grad()
def raise_first_difference(compacted: nn.Module, choice: Choice, proof: Proof, trial: Trial) -> None:
    """Find the first layer whose output differs, and raise WrongOutputError with its name."""
    expected, actual = (_layer_outputs(model, proof, trial, choice) for model in (proof.original, compacted))
    expectation = f"expected at most {proof.most:g} in {proof.dtype}"
    for (name, call, a), (_, _, b) in zip(expected, actual, strict=False):
        value = choice.flow.outputs[name][call]
        if value.dim is not None and len(value.labels) == a.shape[value.dim]:
            keep = torch.from_numpy(np.flatnonzero(choice.stays(value.labels)))
            a = a.index_select(value.dim, keep.to(a.device))
        relative = compare(a, b).relative if a.shape == b.shape else float("inf")
        if not relative <= proof.most:
            raise WrongOutputError(
                f"the compacted model differs from the masked one, first at layer {name!r}: by {relative:.3g} of "
                f"its largest output, on input {trial.name}; {expectation}."
            )
    raise WrongOutputError(
        f"the compacted model differs from the masked one behind its last layer on input {trial.name}; {expectation}."
    )


def _layer_outputs(model: nn.Module, proof: Proof, trial: Trial, choice: Choice) -> list[tuple[str, int, Tensor]]:
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

    modules = dict(model.named_modules())
    names = [name for name in choice.flow.outputs if name not in moved and name in modules]
    names = [name for name in names if not list(modules[name].children())]
    hooks = [modules[name].register_forward_hook(note(name)) for name in names]
    try:
        proof.run(model, trial.call)
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
