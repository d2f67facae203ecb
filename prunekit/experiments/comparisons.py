"""Do two configurations differ? Analysis of variance, Welch's test, Holm's correction and effect sizes.

Compared are configurations that differ in one factor, metric by metric and ratio by ratio, as the report does. The
tests of one comparison over its ratios are one family: Holm's correction holds the probability of any false claim in it
below `ALPHA`.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from scipy import stats

from prunekit.experiments.values import Configuration, Values, is_latency

ALPHA = 0.05
# What factors that act by pruning alone are called, or begin with: at ratio 0, configurations that differ in nothing
# else are one and the same model.
PRUNING_FACTORS = (
    "structure", "score", "pruning", "scope", "keep_stem_and_heads", "share_scores", "allocation", "optimize",
    "finetune",
)  # fmt: skip
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Sample:
    """The values of a configuration's runs.

    Attributes:
        count: Number of runs.
        mean: Of the values.
        sd: Their standard deviation, of the sample (n − 1); None of a single one.
    """

    count: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Effect:
    """Hedges' g, positive where the first is higher, and the ends of its 95 % interval."""

    g: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """Two configurations at one ratio.

    Attributes:
        ratio: Pruning ratio in percent.
        target: What people call it: 50 %, or the budget that came to it.
        first, second: Their values.
        anova_p: Of one-way analysis of variance, which takes both variances to be equal; None where it says nothing:
            fewer than two runs, or values that are all equal.
        welch_p: Of Welch's test, which does not.
        holm_p: `anova_p` after Holm's correction over the comparison's ratios.
        effect: Of the difference; None where nothing varies.
        is_same_model: Whether both are the same model by construction, so that no difference can be theirs.
    """

    ratio: float
    target: str
    first: Sample
    second: Sample
    anova_p: float | None
    welch_p: float | None
    holm_p: float | None
    effect: Effect | None
    is_same_model: bool

    @property
    def differs(self) -> bool:
        """Whether the difference would be called significant if it were the only one that was tested."""
        return self.anova_p is not None and self.anova_p < ALPHA

    @property
    def is_significant(self) -> bool:
        """Whether it is significant after Holm's correction, between models that can differ."""
        return self.holm_p is not None and self.holm_p < ALPHA and not self.is_same_model


@dataclass(frozen=True)
class Comparison:
    """Two configurations that differ in one factor, by one metric.

    Attributes:
        metric: What was measured.
        factor: What they differ in.
        first, second: The configurations.
        names: Their levels of that factor.
        others: The levels of the factors that both share and others do not.
        points: One a ratio, ascending.
    """

    metric: str
    factor: str
    first: Configuration
    second: Configuration
    names: tuple[str, str]
    others: tuple[str, ...]
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """What tables call it: deeplift vs. scaled (unstructured)."""
        where = f" ({', '.join(self.others)})" if self.others else ""
        return f"{self.names[0]} vs. {self.names[1]}{where}"


def compare(values: Values) -> list[Comparison]:
    """Compare all pairs of configurations that differ in one factor, by metric and then by factor."""
    return [
        _comparison(values, metric, index, first, second)
        for metric in values.metrics
        for index in range(len(values.factors))
        for first, second in combinations(values.configurations, 2)
        if [a != b for a, b in zip(first, second, strict=True)] == [i == index for i in range(len(values.factors))]
    ]


def _comparison(values: Values, metric: str, index: int, first: Configuration, second: Configuration) -> Comparison:
    factor = values.factors[index]
    points = []
    for ratio in values.ratios:
        a, b = (list(values.of(configuration, metric, ratio).values()) for configuration in (first, second))
        if a and b:
            points.append(_point(ratio, values.target(ratio), a, b, is_same_model(factor, metric, ratio)))
    names, others = (first[index], second[index]), _shared_levels(values, index, first)
    return Comparison(metric, factor, first, second, names, others, tuple(_corrected(points)))


def _shared_levels(values: Values, index: int, configuration: Configuration) -> tuple[str, ...]:
    """Return the levels that tell this comparison from others of the same factor."""
    compared = {
        configuration
        for first, second in combinations(values.configurations, 2)
        if [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b] == [index]
        for configuration in (first, second)
    }
    varying = [i for i in range(len(values.factors)) if i != index and len({other[i] for other in compared}) > 1]
    return tuple(configuration[i] for i in varying)


def is_same_model(factor: str, metric: str, ratio: float) -> bool:
    """Return whether models that differ in this factor alone are one by construction, as far as a metric can tell.

    At ratio 0 nothing is pruned. Weights that differ take the same time in a network that is the same.
    """
    return ratio == 0 and (factor.startswith(PRUNING_FACTORS) or is_latency(metric))


def _point(ratio: float, target: str, a: Sequence[float], b: Sequence[float], same_model: bool) -> Point:
    anova_p = welch_p = None
    if min(len(a), len(b)) > 1 and len({*a, *b}) > 1:
        with warnings.catch_warnings():  # of values that do not vary: p is 0 then
            warnings.simplefilter("ignore")
            anova_p = float(stats.f_oneway(a, b).pvalue)
            welch_p = float(stats.ttest_ind(a, b, equal_var=False).pvalue)
    return Point(ratio, target, sample(a), sample(b), anova_p, welch_p, None, hedges_g(a, b), same_model)


def sample(values: Sequence[float]) -> Sample:
    """Return count, mean and standard deviation of one value or more."""
    return Sample(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def hedges_g(a: Sequence[float], b: Sequence[float]) -> Effect | None:
    """Return Hedges' g of two samples: the difference of the means in pooled standard deviations.

    With Hedges' correction 1 − 3 / (4·df − 1) for small samples, and the large-sample variance
    (n + m) / (n·m) + g² / (2·(n + m)) for the interval (Hedges and Olkin 1985, chapter 5). None where fewer than two
    values are on a side, or none vary.
    """
    n, m = len(a), len(b)
    if min(n, m) < 2:
        return None
    pooled = math.sqrt(((n - 1) * statistics.variance(a) + (m - 1) * statistics.variance(b)) / (n + m - 2))
    if pooled == 0:
        return None
    g = (1 - 3 / (4 * (n + m - 2) - 1)) * (statistics.fmean(a) - statistics.fmean(b)) / pooled
    half = _NORMAL_95 * math.sqrt((n + m) / (n * m) + g * g / (2 * (n + m)))
    return Effect(g, g - half, g + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of one family after Holm's step-down correction (Holm 1979), in their order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _corrected(points: Sequence[Point]) -> list[Point]:
    tested = [point for point in points if point.anova_p is not None]
    by_ratio = dict(
        zip((point.ratio for point in tested), holm([point.anova_p or 0.0 for point in tested]), strict=True)
    )
    return [replace(point, holm_p=by_ratio.get(point.ratio)) for point in points]
