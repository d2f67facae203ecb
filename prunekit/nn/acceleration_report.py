"""What accelerate chose, layer by layer, with the measurements that it chose by."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from prunekit.comparison import Comparison


@dataclass(frozen=True)
class LayerReport:
    """One convolution.

    Attributes:
        name: The module's qualified name.
        input_shape: [N, C, H, W] of the example.
        weight_shape: [K, C / groups, R, S].
        density: Fraction of weights that are not zero.
        implementation: "dense" or the packed variant that was chosen.
        dense_ms: Median of torch's dense convolution, with the activation that could be fused; None: not timed.
        sparse_ms: Median of the fastest packed variant, likewise.
        reason: Why this implementation.
        ms: Of the layer inside the accelerated model, with the copies made for it; None: not measured there.
        kept_macs: Multiply-adds of kept weights for one image.
        num_bytes: That must be moved at least: kept weights with their places, input and output.
        percent_of_peak: 2 · kept_macs / ms in percent of the machine's multiply-add peak.
        limit: What bounds the layer, by the floors of its work.
        advice: What would make it faster.
        floor_ms: On a GPU, what no kernel can pass: kept multiply-adds at the peak, or bytes at the memory's bandwidth.
    """

    name: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    density: float
    implementation: str
    dense_ms: float | None
    sparse_ms: float | None
    reason: str
    ms: float | None = None
    kept_macs: int | None = None
    num_bytes: int | None = None
    percent_of_peak: float | None = None
    limit: str | None = None
    advice: str | None = None
    floor_ms: float | None = None


@dataclass(frozen=True)
class AccelerationReport:
    """The layers, and the whole model before and after.

    Attributes:
        rows: One a convolution, in the order in which they ran.
        threads: torch's threads while measuring.
        instruction_set: Of the compiled kernels, or None.
        batch_norms_folded: How many BatchNorm2d layers went into convolutions.
        before_ms: Median of the original model in eager mode.
        after_ms: Median of the accelerated model, in turn with it.
        relative_rms: Largest difference of an output from the original's.
        notes: What kept the model from being faster, in sentences.
        engine: "whole graph"; "modules" where the model's own forward runs with some layers replaced; on a GPU "cuda
            graph"; "the model's own" where nothing was replaced.
        peak_gflops: Multiply-adds in registers, counted as two, that the threads reach; None: not measured.
        other_ms: Of the whole graph's steps that are no convolution, by kind.
        tuning_seconds: Time that the choice took.
        gpu: The device's name, or None for the CPU.
        comparison: What `relative_rms` is the result of: how many numbers in how many tensors of how many inputs.
    """

    rows: list[LayerReport]
    threads: int
    instruction_set: str | None
    batch_norms_folded: int
    before_ms: float
    after_ms: float
    relative_rms: float
    notes: list[str] = field(default_factory=list)
    engine: str = "modules"
    peak_gflops: float | None = None
    other_ms: dict[str, float] = field(default_factory=dict)
    tuning_seconds: float = 0.0
    gpu: str | None = None
    comparison: Comparison = field(default_factory=lambda: Comparison(inputs=0))

    @property
    def speedup(self) -> float:
        """How many times faster the accelerated model ran than the original."""
        return self.before_ms / self.after_ms

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {**asdict(self), "speedup": self.speedup}

    def __str__(self) -> str:
        console = Console(width=160, no_color=True)
        with console.capture() as capture:
            console.print(self._table())
        lines = [
            capture.get().rstrip(),
            f"{self.before_ms:.2f} ms before, {self.after_ms:.2f} ms after: {self.speedup:.2f}× on {self._where()}; "
            f"outputs differ by {self.relative_rms:.1e} relative RMS{self._compared()}.",
            *(f"Note: {note}." for note in self.notes),
        ]
        if self.other_ms:
            others = ", ".join(f"{kind} {ms:.2f} ms" for kind, ms in self.other_ms.items())
            lines.insert(1, f"Beside convolutions: {others}.")
        return "\n".join(lines)

    def _compared(self) -> str:
        return f" (compared {self.comparison})" if self.comparison.elements else " (nothing was compared)"

    def _where(self) -> str:
        if self.gpu is not None:
            return self.gpu
        return f"{self.threads} thread{'s'[: self.threads > 1]}, {self.instruction_set or 'no'} kernels"

    def _table(self) -> Table:
        if self.gpu is not None:
            return self._gpu_table()
        return self._whole_graph_table() if self.engine == "whole graph" else self._modules_table()

    def _gpu_table(self) -> Table:
        table = Table("layer", "input", "weight", "density", "kernel", "MB", "floor ms", "why")
        for row in self.rows:
            megabytes = "–" if row.num_bytes is None else f"{row.num_bytes / 1e6:.2f}"
            floor = "–" if row.floor_ms is None else f"{row.floor_ms:.4f}"
            table.add_row(*_shapes(row), row.implementation.split()[0], megabytes, floor, row.reason)
        return table

    def _modules_table(self) -> Table:
        table = Table("layer", "input", "weight", "density", "chosen", "dense ms", "sparse ms", "why")
        for row in self.rows:
            times = ("–" if ms is None else f"{ms:.3f}" for ms in (row.dense_ms, row.sparse_ms))
            table.add_row(*_shapes(row), row.implementation, *times, row.reason)
        return table

    def _whole_graph_table(self) -> Table:
        table = Table("layer", "input", "weight", "density", "cut into", "ms", "% of peak", "limited by")
        for row in self.rows:
            table.add_row(
                *_shapes(row),
                row.implementation,
                "–" if row.ms is None else f"{row.ms:.3f}",
                "–" if row.percent_of_peak is None else f"{row.percent_of_peak:.0f}",
                row.limit or "–",
            )
        return table


def _shapes(row: LayerReport) -> tuple[str, str, str, str]:
    return row.name, "×".join(map(str, row.input_shape)), "×".join(map(str, row.weight_shape)), f"{row.density:.3f}"
