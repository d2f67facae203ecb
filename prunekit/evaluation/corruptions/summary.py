"""What figures under corruptions amount to: mPC and rPC of detectors, mCE of classifiers, by their definitions alone.

A mean over other cells than the benchmark's fifteen corruptions at five severities is called a mean, and says of what.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunekit.errors import InputError
from prunekit.evaluation.corruptions.catalog import BENCHMARK, SEVERITIES, Cell, CorruptPixels
from prunekit.evaluation.evaluate import Subject, finite_or_none
from prunekit.task import Data, Figure, Figures
from prunekit.task_data import ChangesPixels

#: The cells that mPC and mCE are means over.
BENCHMARK_CELLS = tuple(Cell(name, severity) for name in BENCHMARK for severity in SEVERITIES)


@dataclass(frozen=True)
class CorruptionSummary:
    """A model's main figure under corruptions.

    Attributes:
        figure: AP of detectors, accuracy of classifiers.
        clean: The figure on clean images, P; None where there is nothing to measure on.
        values: The figure by cell, likewise.
        is_classifier: Whether 1 - the figure is an error, for mCE.
        baseline: The same figure of another classifier, at least for these cells; None for none.
    """

    figure: Figure
    clean: float | None
    values: Mapping[Cell, float | None]
    is_classifier: bool = False
    baseline: Mapping[Cell, float] | None = None

    @property
    def is_complete(self) -> bool:
        """Return whether all of the benchmark is there."""
        return all(cell in self.values for cell in BENCHMARK_CELLS)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """What `mean` is over: the benchmark's cells if all are there, else whichever there are."""
        return BENCHMARK_CELLS if self.is_complete else tuple(self.values)

    @property
    def mean(self) -> float | None:
        """The mean over `cells`; None where one of them has no figure."""
        return _mean([self.values[cell] for cell in self.cells])

    @property
    def relative(self) -> float | None:
        """The mean as a share of the clean figure."""
        return self.mean / self.clean if self.mean is not None and self.clean else None

    def of_corruption(self, name: str) -> float | None:
        """Return the mean over a corruption's severities, as far as there are any."""
        return _mean([value for cell, value in self.values.items() if cell.corruption == name])

    @property
    def corruption_error(self) -> float | None:
        """The mean over the corruptions in `cells` of Σ errors / Σ the baseline's errors, both over severities.

        It is mCE (Hendrycks and Dietterich 2019) where `cells` are the benchmark's. None without a baseline, and where
        the baseline makes no error.
        """
        errors: dict[str, list[float]] = {}
        for cell in self.cells:
            value = self.values[cell]
            if self.baseline is None or value is None:
                return None
            sums = errors.setdefault(cell.corruption, [0.0, 0.0])
            sums[0] += 1 - value
            sums[1] += 1 - self.baseline[cell]
        return _mean([own / theirs if theirs > 0 else None for own, theirs in errors.values()])

    def figures(self) -> dict[str, Any]:
        """Return all of it for JSON; mpc, rpc and mce are there only where their definitions hold."""
        found: dict[str, Any] = {
            "figure": self.figure.column,
            "clean": self.clean,
            "mean": self.mean,
            "relative": self.relative,
            "cells": len(self.cells),
        }
        if self.is_complete and not self.is_classifier:
            found |= {"mpc": self.mean, "rpc": self.relative}
        if self.baseline is not None:
            found["mce" if self.is_complete else "mean_corruption_error"] = self.corruption_error
        by_cell = {cell.name: value for cell, value in self.values.items()}
        return {**found, "by_cell": by_cell}

    def sentences(self) -> list[str]:
        """Return what a reader should know first, a line each."""
        name, clean, mean = self.figure.name, _shown(self.clean), _shown(self.mean)
        over = f"over {len({cell.corruption for cell in self.cells})} corruptions at 5 severities"
        if not self.is_complete:
            over = f"over {len(self.cells)} cells, not the {len(BENCHMARK_CELLS)} of the benchmark"
        if self.is_complete and not self.is_classifier:
            relative = "not defined" if self.relative is None else f"{self.relative:.1%}"
            lines = [f"Corruptions: P {clean}, mPC {mean}, rPC {relative} ({name}, mean {over})"]
        else:
            lines = [f"Corruptions: {name} {clean} clean, mean {mean} {over}"]
        return lines + ([self._error_sentence()] if self.is_classifier else [])

    def _error_sentence(self) -> str:
        if self.baseline is None:
            return "mCE is relative to another classifier's errors: --corruption-baseline names its corruptions.csv"
        error = "not defined, as the baseline makes no error" if self.corruption_error is None else None
        what = "mCE" if self.is_complete else f"Mean corruption error of {len(self.cells)} cells, which is not mCE,"
        return f"{what} relative to the baseline: {error or f'{self.corruption_error:.1%}'}"


def require_corruptible(dataset: Data) -> ChangesPixels:
    """Return a data set whose images can be changed where they are decoded; InputError for another one."""
    if not isinstance(dataset, ChangesPixels):
        raise InputError(
            "--corruptions: expected data whose images can be changed right after decoding "
            f"(prunekit.task_data.ChangesPixels), got {type(dataset).__name__}."
        )
    return dataset


def corrupted(subject: Subject, cell: Cell) -> Subject:
    """Return an evaluation's subject with every image corrupted right after decoding."""
    change = CorruptPixels(cell, subject.config.seed)
    return replace(subject, dataset=require_corruptible(subject.dataset).changed(change))


def main_figure(figures: Figures, figure: Figure) -> float | None:
    """Return a case's main figure; None where there is nothing to measure on."""
    return finite_or_none(figures[figure.column])


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _shown(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
