"""Why an accelerated model is not faster: its layers, what limits each, and where the milliseconds are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from prunekit.engine.geometry import Size
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.program import Segment
from prunekit.nn import AccelerationReport, LayerReport
from prunekit.nn.whole_graph import layer_reports
from prunekit.ops import native, native_status
from prunekit.timing import time_in_turn

BESIDE = "beside convolutions"
_RUNS = 9
_PEAKS = 3  # others on the machine only ever make it smaller
_ADVICE = {
    "remap": "images enter and results leave the engine's layout: fewer or smaller inputs and outputs",
    "halo": "lanes repeat their neighbors' borders: fewer channels; the share falls as maps grow",
    "max_pool2d": "pooling reads every pixel, pruned or not: fewer channels (filter pruning)",
    "avg_pool2d": "pooling reads every pixel, pruned or not: fewer channels (filter pruning)",
    "torch": "torch runs these operators, on values copied out of the engine: the notes name them",
}
_ANY_ADVICE = "it reads and writes every pixel, pruned or not: fewer channels (filter pruning)"


@dataclass(frozen=True)
class Share:
    """Milliseconds that have one cause.

    Attributes:
        limit: "multiply-adds", "memory", "short loops", "loads", or "beside convolutions: …" with the kind of step.
        ms: Of all that it limits.
        fraction: Of the model's time, both step by step.
        layers: Names, those with most milliseconds first; empty beside convolutions.
        advice: What would make it less.
    """

    limit: str
    ms: float
    fraction: float
    layers: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class Explanation:
    """An accelerated model's time, taken apart.

    Attributes:
        engine: "whole graph", or "modules": then layers have no milliseconds of their own, and there are no shares.
        threads: torch's while measuring.
        instruction_set: Of the compiled kernels, or None.
        peak_gflops: The machine's multiply-adds, counted as two, in 10^9 a second; None: not measured.
        ms: Median of the whole model.
        original_ms: Median of the model that it was made from, in turn with it; None where there is none.
        rows: The convolutions.
        shares: Where the time is, the largest first.
        notes: What kept the model from being faster.
    """

    engine: str
    threads: int
    instruction_set: str | None
    peak_gflops: float | None
    ms: float
    original_ms: float | None
    rows: list[LayerReport]
    shares: list[Share]
    notes: list[str]

    @property
    def kept_macs(self) -> int | None:
        """Multiply-adds of all convolutions' kept weights for one image; None where they were not counted."""
        counts = [row.kept_macs for row in self.rows if row.kept_macs is not None]
        return sum(counts) if counts else None

    @property
    def least_ms(self) -> float | None:
        """What the kept multiply-adds would take at the machine's peak; None where it was not measured."""
        macs = self.kept_macs
        return None if macs is None or not self.peak_gflops else 2 * macs / self.peak_gflops / 1e6

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        return {**asdict(self), "kept_macs": self.kept_macs, "least_ms": self.least_ms}


def explain_report(report: AccelerationReport) -> Explanation:
    """Explain what `accelerate` has just measured."""
    return Explanation(
        engine=report.engine,
        threads=report.threads,
        instruction_set=report.instruction_set,
        peak_gflops=report.peak_gflops,
        ms=report.after_ms,
        original_ms=report.before_ms,
        rows=report.rows,
        shares=shares_of(report.rows, report.other_ms),
        notes=list(report.notes),
    )


def explain_model(fast: AcceleratedModel, inputs: Sequence[Tensor]) -> Explanation:
    """Measure a model that was loaded, at the size of `inputs`.

    Raises:
        InputError: the model does not take such inputs.
    """
    with torch.no_grad():
        fast(*inputs)
    fast.graph.sizes = planned_sizes(fast, inputs)
    peak = max(native.fma_peak_gflops() for _ in range(_PEAKS))
    rows, other = layer_reports(fast, inputs, peak)
    foreign = sorted({n.attributes["target"] for n in fast.graph.nodes if not n.is_native} - {"getitem"})
    timing = time_in_turn({"model": lambda: fast(*inputs)}, _RUNS)["model"]
    return Explanation(
        engine="whole graph",
        threads=torch.get_num_threads(),
        instruction_set=native_status().instruction_set,
        peak_gflops=peak,
        ms=timing.median_ms,
        original_ms=None,
        rows=rows,
        shares=shares_of(rows, other),
        notes=[f"torch runs {', '.join(foreign)}"] if foreign else [],
    )


def planned_sizes(fast: AcceleratedModel, inputs: Sequence[Tensor]) -> dict[str, Size]:
    """Return [C, H, W] of every image that the engine's own steps read or make, where `inputs` just ran."""
    graph, sizes = fast.graph, dict[str, Size]()
    for name, x in zip(graph.inputs, inputs, strict=True):
        if x.dim() == 4:
            sizes[name] = (x.shape[1], x.shape[2], x.shape[3])
    order = {node.name: i for i, node in enumerate(graph.nodes)}

    def first_step(segment: Segment) -> int:
        return min(order[name] for name in segment.plan.sizes if name not in segment.inputs)

    for segment in sorted(fast.segments(), key=first_step):
        planned = segment.plan.sizes
        if all(sizes.get(name, planned[name]) == planned[name] for name in segment.inputs):  # else for other inputs
            sizes |= planned
    return sizes


def shares_of(rows: Sequence[LayerReport], other_ms: Mapping[str, float]) -> list[Share]:
    """Add up milliseconds by what limits them; nothing where the layers were not measured inside the model."""
    timed = [(row, row.ms) for row in rows if row.ms is not None]
    if not timed:
        return []
    total = max(sum(ms for _, ms in timed) + sum(other_ms.values()), 1e-9)
    shares = []
    for limit in dict.fromkeys(row.limit or "unknown" for row, _ in timed):
        mine = sorted(((row, ms) for row, ms in timed if (row.limit or "unknown") == limit), key=lambda item: -item[1])
        ms = sum(row_ms for _, row_ms in mine)
        names = tuple(row.name for row, _ in mine)
        shares.append(Share(limit, ms, ms / total, names, mine[0][0].advice or ""))
    for kind, ms in other_ms.items():
        shares.append(Share(f"{BESIDE}: {kind}", ms, ms / total, (), _ADVICE.get(kind, _ANY_ADVICE)))
    return sorted(shares, key=lambda share: -share.ms)
