"""What accelerate chose, layer by layer, with the measurements that it chose by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from prunekit.comparison import Comparison
from prunekit.text_table import text_table


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
        precision: "float32", or "int8": levels in and int32 sums.
        scale, zero_point: Of an input in int8: a level stands for scale · (level - zero_point).
        signal_to_noise: Decibels of the layer's sums over what int8 changes in them; None: not measured.
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
    precision: str = "float32"
    scale: float | None = None
    zero_point: int | None = None
    signal_to_noise: float | None = None


@dataclass(frozen=True)
class PartReport:
    """One submodule that was tried on the engine inside a model that keeps its class.

    Attributes:
        name: The submodule's qualified name.
        engine: "whole graph", or "own code" where it was left as it is.
        calls: How often the model calls it on the example.
        before_ms: Of all these calls, on its own code; None: not timed.
        after_ms: Likewise on the engine.
        comparison: With its own code, on every size that it is called with.
        notes: Why it was left as it is, or what was special about the comparison.
    """

    name: str
    engine: str
    calls: int
    before_ms: float | None = None
    after_ms: float | None = None
    comparison: Comparison = field(default_factory=lambda: Comparison(inputs=0))
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        words = f"{self.name} ({self.calls} call{'s'[: self.calls != 1]}): {self.engine}"
        if self.before_ms is not None and self.after_ms is not None:
            words += f", {self.before_ms:.2f} ms before, {self.after_ms:.2f} ms on the engine"
        if self.comparison.elements:
            words += f", differs by {self.comparison.relative_rms:.1e} relative RMS (compared {self.comparison})"
        return f"{words}{''.join(f'; {note}' for note in self.notes)}."


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
        engine: "whole graph"; "parts" where the model's own forward runs with submodules on the engine; "modules" where
            it runs with some layers replaced; on a GPU "cuda graph"; "the model's own" where nothing was replaced.
        peak_gflops: Multiply-adds in registers, counted as two, that the threads reach; None: not measured.
        other_ms: Of the whole graph's steps that are no convolution, by kind.
        tuning_seconds: Time that the choice took.
        gpu: The device's name, or None for the CPU.
        parts: Submodules that were put on the engine, or tried there, where the model keeps its class.
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
    parts: list[PartReport] = field(default_factory=list)
    comparison: Comparison = field(default_factory=lambda: Comparison(inputs=0))

    @property
    def speedup(self) -> float:
        """How many times faster the accelerated model ran than the original."""
        return self.before_ms / self.after_ms

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {**asdict(self), "speedup": self.speedup}

    def __str__(self) -> str:
        lines = [
            self._table(),
            f"{self.before_ms:.2f} ms before, {self.after_ms:.2f} ms after: {self.speedup:.2f}× on {self._where()}; "
            f"outputs differ by {self.relative_rms:.1e} relative RMS{self._compared()}.",
            *(f"Part {part}" for part in self.parts),
            *(f"Note: {note}." for note in self.notes),
        ]
        if self.other_ms:
            others = ", ".join(f"{kind} {ms:.2f} ms" for kind, ms in self.other_ms.items())
            lines.insert(1, f"Other steps: {others}.")
        return "\n".join(lines)

    def _compared(self) -> str:
        return f" (compared {self.comparison})" if self.comparison.elements else " (nothing was compared)"

    def _where(self) -> str:
        if self.gpu is not None:
            return self.gpu
        return f"{self.threads} thread{'s'[: self.threads > 1]}, {self.instruction_set or 'no'} kernels"

    def _table(self) -> str:
        headings: tuple[str, ...]
        cells: Callable[[LayerReport], tuple[str, ...]]
        if self.gpu is not None:
            headings, cells = _GPU, _gpu_cells
        elif any(row.precision == "int8" for row in self.rows):
            headings, cells = _INT8, _int8_cells
        elif self.engine in ("whole graph", "parts"):
            headings, cells = _WHOLE_GRAPH, _whole_graph_cells
        else:
            headings, cells = _MODULES, _modules_cells
        return text_table([*_LAYER, *headings], [[*_shapes(row), *cells(row)] for row in self.rows])


# Headings, and below the cells under them.
_LAYER = ("layer", "input", "weight", "density")
_GPU = ("kernel", "MB", "floor ms", "why")
_MODULES = ("chosen", "dense ms", "sparse ms", "why")
_WHOLE_GRAPH = ("schedule", "ms", "% of peak", "limited by")
_INT8 = ("precision", "noise dB", "scale", "zero", *_WHOLE_GRAPH)


def _gpu_cells(row: LayerReport) -> tuple[str, ...]:
    megabytes = None if row.num_bytes is None else row.num_bytes / 1e6
    return row.implementation.split()[0], _number(megabytes, ".2f"), _number(row.floor_ms, ".4f"), row.reason


def _modules_cells(row: LayerReport) -> tuple[str, ...]:
    return row.implementation, _number(row.dense_ms, ".3f"), _number(row.sparse_ms, ".3f"), row.reason


def _whole_graph_cells(row: LayerReport) -> tuple[str, ...]:
    return row.implementation, _number(row.ms, ".3f"), _number(row.percent_of_peak, ".0f"), row.limit or "–"


def _int8_cells(row: LayerReport) -> tuple[str, ...]:
    zero = "–" if row.zero_point is None else str(row.zero_point)
    noise = _number(row.signal_to_noise, ".0f")
    return row.precision, noise, _number(row.scale, ".3g"), zero, *_whole_graph_cells(row)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _shapes(row: LayerReport) -> tuple[str, str, str, str]:
    return row.name, "×".join(map(str, row.input_shape)), "×".join(map(str, row.weight_shape)), f"{row.density:.3f}"
