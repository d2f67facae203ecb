"""What the comparisons support, in plain sentences; all of it follows from the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prunekit.experiments.comparisons import ALPHA, Comparison, Point, Sample
from prunekit.experiments.values import Values, is_latency


def summarize(comparison: Comparison) -> str:
    """Say in one sentence at which ratios a comparison holds, alone and after Holm's correction."""
    points = [point for point in comparison.points if not point.is_same_model]
    alone, kept = [p for p in points if p.differs], [p for p in points if p.is_significant]
    subject = f"{comparison.metric}, {comparison.name}:"
    if not any(point.anova_p is not None for point in points):
        return f"{subject} nothing can be said, since a test takes two runs or more, whose values vary."
    if not alone:
        return f"{subject} no difference at any ratio."
    if not kept:
        return f"{subject} p < {ALPHA:g} at {_ratios(alone)}; no difference survives Holm's correction."
    leads = [
        f"{name} is higher at {_ratios(led)}"
        for name, led in zip(comparison.names, (_led(kept, 1), _led(kept, -1)), strict=True)
        if led
    ]
    lost = f"; p < {ALPHA:g} at {_ratios(gone)} does not survive" if (gone := _without(alone, kept)) else ""
    return f"{subject} after Holm's correction {' and '.join(leads)}{lost}."


def describe(comparison: Comparison, point: Point) -> str:
    """Say in one or two sentences what a comparison is worth at one ratio."""
    first, second = comparison.names
    means = f"{first} {spread(point.first)}, {second} {spread(point.second)}"
    where = f"At {point.target}"
    if point.anova_p is None or point.holm_p is None:
        return f"{where}: {means}; {_untested(point)}."
    tests = f"p = {number(point.anova_p)}, {number(point.holm_p)} after Holm's correction"
    if point.effect is not None:
        tests += f"; Hedges' g {point.effect.g:.2f} [{point.effect.low:.2f}, {point.effect.high:.2f}]"
    return f"{where}: {means} ({tests}). {_verdict(comparison, point)}"


def oddities(values: Values, comparisons: Iterable[Comparison]) -> list[str]:
    """Return a sentence for each difference between models that are one by construction.

    Such a difference shows what the other differences of the same runs can be worth.
    """
    return [
        f"{comparison.metric}, {comparison.name} at {point.ratio:g} %: nothing is pruned, so both are the same "
        f"{_one(comparison)}, yet {comparison.names[0]} has {spread(point.first)} "
        f"and {comparison.names[1]} {spread(point.second)} "
        f"(p = {number(point.anova_p or 0.0)}){_run_by_run(values, comparison, point)}. "
        f"The {comparison.factor} cannot be the cause."
        for comparison in comparisons
        for point in comparison.points
        if point.is_same_model and point.differs
    ]


def spread(sample: Sample) -> str:
    """Return mean ± standard deviation of a sample, in digits that suit its size."""
    digits = 1 if abs(sample.mean) >= 10 else 2 if abs(sample.mean) >= 1 else 4
    return f"{sample.mean:.{digits}f}" + ("" if sample.sd is None else f" ± {sample.sd:.{digits}f}")


def number(p: float) -> str:
    """Return a p-value as the report prints them: 1.71e-03."""
    return f"{p:.2e}"


def _verdict(comparison: Comparison, point: Point) -> str:
    if point.is_same_model:
        same = f"Nothing is pruned: both are the same {_one(comparison)} by construction"
        return f"{same}, so that a difference is none of the {comparison.factor}'s and not called significant."
    higher = comparison.names[0] if point.first.mean > point.second.mean else comparison.names[1]
    if point.is_significant:
        hint = (
            ""
            if point.welch_p is None or point.welch_p < ALPHA
            else f", but not by Welch's test ({number(point.welch_p)})"
        )
        return f"{higher} is higher{hint}."
    if point.differs:
        return (
            f"{higher} is higher if this were the only test; it is one of {len(comparison.points)}, so no claim holds."
        )
    return "The data do not tell them apart."


def _one(comparison: Comparison) -> str:
    return "network" if is_latency(comparison.metric) else "model"


def _untested(point: Point) -> str:
    if point.first.mean == point.second.mean and not (point.first.sd or point.second.sd):
        return "all values are equal"
    return "a test takes two runs or more"


def _run_by_run(values: Values, comparison: Comparison, point: Point) -> str:
    """Return what becomes of the difference where it is taken run by run, if the runs have names in common."""
    first, second = (
        values.of(configuration, comparison.metric, point.ratio)
        for configuration in (comparison.first, comparison.second)
    )
    common = [run for run in first if run in second]
    differing = sum(first[run] != second[run] for run in common)
    return f"; {differing} of {len(common)} runs differ" if common else ""


def _led(points: Sequence[Point], sign: int) -> list[Point]:
    return [point for point in points if sign * (point.first.mean - point.second.mean) > 0]


def _without(points: Sequence[Point], others: Sequence[Point]) -> list[Point]:
    return [point for point in points if point not in others]


def _ratios(points: Sequence[Point]) -> str:
    *others, last = (point.target for point in points)
    return f"{', '.join(other.removesuffix(' %') for other in others)} and {last}" if others else last
