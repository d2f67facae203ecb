"""What accelerate chose, layer by layer, with the measurements that it chose by."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table


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
    """

    name: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    density: float
    implementation: str
    dense_ms: float | None
    sparse_ms: float | None
    reason: str


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
    """

    rows: list[LayerReport]
    threads: int
    instruction_set: str | None
    batch_norms_folded: int
    before_ms: float
    after_ms: float
    relative_rms: float
    notes: list[str] = field(default_factory=list)

    @property
    def speedup(self) -> float:
        """How many times faster the accelerated model ran than the original."""
        return self.before_ms / self.after_ms

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {**asdict(self), "speedup": self.speedup}

    def __str__(self) -> str:
        table = Table("layer", "input", "weight", "density", "chosen", "dense ms", "sparse ms", "why")
        for row in self.rows:
            table.add_row(
                row.name,
                "×".join(map(str, row.input_shape)),
                "×".join(map(str, row.weight_shape)),
                f"{row.density:.3f}",
                row.implementation,
                *("–" if ms is None else f"{ms:.3f}" for ms in (row.dense_ms, row.sparse_ms)),
                row.reason,
            )
        console = Console(width=160, no_color=True)
        with console.capture() as capture:
            console.print(table)
        lines = [
            capture.get().rstrip(),
            f"{self.before_ms:.2f} ms before, {self.after_ms:.2f} ms after: {self.speedup:.2f}× on {self.threads} "
            f"thread{'s'[: self.threads > 1]}, {self.instruction_set or 'no'} kernels; "
            f"outputs differ by {self.relative_rms:.1e} relative RMS.",
            *(f"Note: {note}." for note in self.notes),
        ]
        return "\n".join(lines)
