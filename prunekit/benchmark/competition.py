"""Competitors that must be right before they are timed, and timing in turn."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from prunekit.benchmark.engines.calls import Call
from prunekit.benchmark.engines.precisions import FLOAT32, Precision
from prunekit.comparison import relative_rms
from prunekit.errors import first_line
from prunekit.nn import MAX_RELATIVE_RMS
from prunekit.progress import Progress

#: At 1 outputs are no nearer to the right ones than zeros would be: nothing of the signal is left.
NO_APPROXIMATION = 1.0
# Float32 networks of a hundred layers reach 3e-6. Int8 came down to 1e-4 on a head of YOLOv3, most of whose outputs is
# its bias, and leaves 1e-2 on other convolutions.
_ROUNDING_OF_FLOAT32 = 1e-5

Kind = Literal["peer", "control", "prunekit"]

_WARM_UP_CALLS = 2
# Timed calls in a row. Before them comes one that is not timed: it finds the caches full of the last competitor's
# weights and cores on which the last one's idle threads still spin, as no model does that runs alone.
_CALLS_A_TURN = 2


@dataclass(frozen=True)
class Competitor:
    """One way to run a problem.

    Attributes:
        name: for people, without a version.
        kind: a dense peer, the control (pruned weights on the dense path), or prunekit.
        ratio: percent of each layer's weights that are zero.
        call: runs it.
        expected: what it must return.
        density: share of the weights that are not zero.
        kept_macs: multiply-adds of the weights that are not zero.
        weight_bytes: the weights that must be read, at least.
        precision: what it computes in.
        choices: for prunekit, how many convolutions run on which implementation.
    """

    name: str
    kind: Kind
    ratio: float
    call: Call
    expected: tuple[Tensor, ...]
    density: float
    kept_macs: int
    weight_bytes: int
    precision: Precision = FLOAT32
    choices: dict[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name, with the ratio where it is one of several."""
        return label_of(self.name, self.kind, self.ratio)


def label_of(name: str, kind: Kind, ratio: float) -> str:
    """Return a competitor's name, with the ratio where it is one of several."""
    return name if kind == "peer" else f"{name}, {ratio:g} %"


def error_of(competitor: Competitor) -> float | str:
    """Return the largest relative RMS of an output from what is expected, or in words why it cannot be timed."""
    try:
        outputs = competitor.call()
    except Exception as error:  # a foreign engine raises what it likes
        return f"it does not run: {one_line(error)}"
    shapes, wanted = [tuple(y.shape) for y in outputs], [tuple(y.shape) for y in competitor.expected]
    if shapes != wanted:
        return f"its outputs have shapes {shapes}, expected {wanted}"
    if not any(bool(y.isfinite().any()) for y in competitor.expected):
        return "its outputs cannot be checked: no finite number is expected"
    difference = max(relative_rms(y, found) for y, found in zip(competitor.expected, outputs, strict=True))
    return _refusal(difference, competitor.precision) or difference


def _refusal(difference: float, precision: Precision) -> str | None:
    """Return why outputs that differ so much are not those of a precision; None where they can be."""
    found = f"its outputs differ by {difference:.2g} relative RMS"
    if precision == FLOAT32:
        return None if difference <= MAX_RELATIVE_RMS else f"{found}, expected at most {MAX_RELATIVE_RMS:g}"
    if not difference < NO_APPROXIMATION:  # also when it is nan
        return f"{found}, expected less than {NO_APPROXIMATION:g}, at which nothing of the right ones is left"
    if difference <= _ROUNDING_OF_FLOAT32:
        return f"{found}, which is float32's rounding: it does not compute in {precision}"
    return None


def split_by_rightness(
    competitors: Sequence[Competitor], progress: Progress
) -> tuple[dict[str, float], dict[str, str]]:
    """Run each competitor once.

    Returns:
        The relative RMS of those that are right, and why the others are not timed, by label.
    """
    right: dict[str, float] = {}
    wrong: dict[str, str] = {}
    for competitor in competitors:
        found = error_of(competitor)
        if isinstance(found, str):
            wrong[competitor.label] = found
            progress.message(f"{competitor.label}: not timed, {found}")
        else:
            right[competitor.label] = found
    return right, wrong


def seconds_in_turn(calls: Mapping[str, Call], runs: int, progress: Progress) -> dict[str, list[float]]:
    """Time calls in turn, each turn in another order, so that whatever slows the machine down meets all of them.

    Args:
        calls: what to time, by name.
        runs: at least so many timed calls of each.
        progress: follows the turns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(_WARM_UP_CALLS):
            call()
    for name in progress.track(_turns(list(calls), -(-runs // _CALLS_A_TURN)), "timing", _num_turns(calls, runs)):
        calls[name]()
        for _ in range(_CALLS_A_TURN):
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def one_line(error: BaseException) -> str:
    """Return the first line of an exception's message, behind its type."""
    return f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__


def _num_turns(calls: Mapping[str, Call], runs: int) -> int:
    return -(-runs // _CALLS_A_TURN) * len(calls)


def _turns(names: list[str], rounds: int) -> Iterator[str]:
    shuffler = random.Random(0)
    for _ in range(rounds):
        shuffler.shuffle(names)
        yield from names
