"""What both models are run on, and how: the same inputs, the same random numbers, float64 where that is possible."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from prunekit.compaction.certificate import Difference
from prunekit.compaction.widening import ComputingInFloat64, in_float64
from prunekit.comparison import TOLERANCES, compare, tolerance
from prunekit.discontinuous import check_continuous
from prunekit.errors import InputError, WrongOutputError
from prunekit.graph.calls import Call
from prunekit.structure import tensors_of

#: Two ways to add up the same numbers in float64 differ by about 1e-15 of the largest.
MAX_RELATIVE_DIFFERENCE = TOLERANCES[torch.float64]
#: Some models amplify that: with random weights StarNet, which multiplies branches, by 10^8. Differences up to so many
#: times what rounding the inputs otherwise makes of the original's own outputs are taken for rounding, ...
_OF_OWN_ROUNDING = 10
#: ... but none above this one: beyond it float64 proves nothing.
_MOST_AMPLIFIED = 1e-6
_NUDGES = 3


@dataclass(frozen=True)
class Trial:
    """An input, and what the original returns for it."""

    name: str
    call: Call
    expected: Any


@dataclass(frozen=True)
class Proof:
    """The original and what it returns, to compare other models with.

    Attributes:
        original: In float64, or as it is where its float64 copy does not run.
        trials: At least one, the example first.
        is_wide: Whether everything is computed in float64.
        is_random: Whether the original draws random numbers.
        notes: Sizes at which the model does not run, and whatever else limits the proof.
        own_rounding: How far the original's outputs move where its inputs are rounded otherwise, once it was measured.
    """

    original: nn.Module
    trials: tuple[Trial, ...]
    is_wide: bool
    is_random: bool
    notes: tuple[str, ...]
    own_rounding: list[float] = field(default_factory=list)

    @property
    def most(self) -> float:
        """The largest relative difference allowed."""
        if not self.is_wide:
            return tolerance([trial.expected for trial in self.trials])
        amplified = [min(_OF_OWN_ROUNDING * moved, _MOST_AMPLIFIED) for moved in self.own_rounding]
        return max([MAX_RELATIVE_DIFFERENCE, *amplified])

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, and what was taken for rounding where that is more than usual."""
        if self.most == MAX_RELATIVE_DIFFERENCE or not self.is_wide:
            return self.notes
        note = (
            f"the model amplifies rounding: inputs rounded otherwise move its outputs by {self.own_rounding[0]:.1e}, "
            f"so differences up to {self.most:.1e} were taken for rounding"
        )
        return (*self.notes, note)

    @property
    def dtype(self) -> str:
        """What is compared, in words."""
        if self.is_wide:
            return "float64"
        found = {str(t.dtype).removeprefix("torch.") for t in tensors_of(self.trials[0].expected)}
        return " and ".join(sorted(found))

    def run(self, model: nn.Module, call: Call) -> Any:
        """Run a model as the original was run."""
        return run(model, call, self.is_wide)

    def difference(self, model: nn.Module, trial: Trial) -> Difference:
        """Run another model on a trial; a difference is infinite where the outputs cannot be compared.

        Where outputs differ, discontinuous operators (topk, argmax, nms) may have decided otherwise at a tie: then
        what flows into them is compared, and what comes out with the same decisions.
        """
        try:
            found = compare(trial.expected, self.run(model, trial.call))
        except WrongOutputError:
            found = None
        if found is not None and not found.relative <= self.most and self.is_wide and not self.own_rounding:
            self.own_rounding.append(self._measure_own_rounding())
        if found is not None and found.relative <= self.most:
            return Difference.of(trial.name, found)
        first, second = (partial(self.run, net, trial.call) for net in (self.original, model))
        try:
            shared = check_continuous(first, second, "the compacted model", self.most)
        except WrongOutputError:
            is_far = found is not None and found.relative > self.most
            return Difference.of(trial.name, found) if is_far else Difference(trial.name, math.inf, math.inf)  # type: ignore[arg-type]
        operators = ", ".join(name.split(".")[1] for name in shared.operators)
        return Difference.of(f"{trial.name} up to ties of {operators}", shared.comparison)

    def _measure_own_rounding(self) -> float:
        moved = [0.0]
        for trial in self.trials:
            for seed in range(_NUDGES):
                try:
                    moved.append(compare(trial.expected, self.run(self.original, trial.call.nudged(seed))).relative)
                except WrongOutputError:  # it finds another number of objects, say
                    continue
        return max(value for value in moved if math.isfinite(value))

    def is_equal(self, row: Difference) -> bool:
        """Tell whether a difference is rounding."""
        return row.relative <= self.most and row.elements > 0

    def blame_randomness(self, model_name: str) -> None:
        """Raise InputError where the original does not repeat what it returned: then nothing can be compared."""
        trial = self.trials[0]
        try:
            again = compare(trial.expected, self.run(self.original, trial.call))
        except WrongOutputError:
            again = None
        if self.is_random or again is None or not again.relative <= self.most:
            raise InputError(
                f"Expected a model that returns the same for the same input, but {model_name} is random (dropout that "
                "is always on, or noise), and draws other numbers once channels are removed."
            )

    def blame_amplification(self, model_name: str) -> None:
        """Raise InputError where the original amplifies float64's rounding so much that nothing is proved by it."""
        moved = max(self.own_rounding, default=0.0)
        if _OF_OWN_ROUNDING * moved > _MOST_AMPLIFIED:
            raise InputError(
                f"Expected a model whose outputs float64 determines, but those of {model_name} move by {moved:.1e} "
                "where its inputs are rounded otherwise, so that a compacted model cannot be compared with it."
            )


def run(model: nn.Module, call: Call, is_wide: bool) -> Any:
    """Run a model with the random numbers that every run gets."""
    _seed()
    with torch.no_grad(), ComputingInFloat64() if is_wide else nullcontext():  # type: ignore[no-untyped-call]
        return call.run(model)


def prove(model: nn.Module, example: Call) -> Proof:
    """Run `model` on the example and on random inputs of several sizes, in float64 where it can.

    Raises:
        InputError: An output on the example is not finite, or all outputs hold no number.
    """
    original = in_float64(model)
    found, fails, is_random = _trials(original, example.widened(), True)
    is_wide = bool(found)
    if not is_wide:
        why = fails[0]
        original = model
        found, fails, is_random = _trials(model, example, False)
        fails.insert(0, f"compared in the model's own dtype, because {why} in float64")
    if not found:
        raise InputError(f"Expected a model that runs on the example input again, but {fails[-1]}.")
    _check_comparable(model, found[0])
    if is_random:
        fails.append("the model draws random numbers; both models were given the same")
    return Proof(original, tuple(found), is_wide, is_random, tuple(fails))


def _trials(model: nn.Module, example: Call, is_wide: bool) -> tuple[list[Trial], list[str], bool]:
    """Return the trials, what else the model does not run on, and whether it draws random numbers."""
    candidates = [("example", example), ("random", example.random(0))]
    candidates += [("random", call) for call in example.resized(1)]
    found: list[Trial] = []
    fails: list[str] = []
    is_random = False
    for kind, call in candidates:
        name = f"{kind} {call}"
        try:
            expected = run(model, call, is_wide)
            is_random |= kind == "example" and _has_drawn()
        except Exception as error:  # a forward may only take one size
            fails.append(f"the model does not run on {name} ({type(error).__name__})")
            if kind == "example":
                break
            continue
        if kind == "random" and not all(bool(y.isfinite().all()) for y in tensors_of(expected)):
            fails.append(f"the outputs on {name} are not finite")
        elif kind == "random" and not any(y.numel() for y in tensors_of(expected)):
            fails.append(f"the outputs on {name} are empty")
        else:
            found.append(Trial(name, call, expected))
    return found, fails, is_random


def _check_comparable(model: nn.Module, example: Trial) -> None:
    outputs, name = tensors_of(example.expected), type(model).__name__
    if not any(y.numel() for y in outputs):
        raise InputError(
            f"Expected an example input for which {name} returns numbers to compare, but its {len(outputs)} output "
            f"tensors on {example.name} hold none."
        )
    if not all(bool(y.isfinite().all()) for y in outputs):
        raise InputError(
            "Expected a model whose outputs on the example input are finite, because they are compared with "
            f"the compacted model's, but {name} answers nan or infinity."
        )


def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - a forward may draw from the global generator


def _has_drawn() -> bool:
    """Tell whether random numbers were drawn since `_seed`: whoever does changes a generator's state."""
    now = _states()
    _seed()
    return now != _states()


def _states() -> tuple[object, ...]:
    numpy_state: tuple[Any, ...] = np.random.get_state(legacy=True)  # type: ignore[assignment]  # noqa: NPY002
    gpus: Sequence[torch.Tensor] = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    return (
        random.getstate(),
        numpy_state[1].tobytes(),
        numpy_state[2],
        *(state.numpy().tobytes() for state in (torch.get_rng_state(), *gpus)),
    )
