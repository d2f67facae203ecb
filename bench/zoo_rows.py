"""Rows of `bench.zoo`: one a model and tool, as JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from prunekit.benchmark.rows import read_json_lines, to_lines

Tool = Literal["accelerate", "compact"]
TOOLS: tuple[Tool, ...] = ("accelerate", "compact")


class Check(BaseModel):
    """The result compared with the model itself on one input.

    Attributes:
        shape: Of the input.
        error: The largest relative RMS of an output; None where nothing could be compared. JSON has no nan and no
            infinity: both are None, and `problem` says so.
        tensors, elements: How many were compared.
        compared: "outputs", or the submodules whose outputs were compared instead.
        refused: The sentence of an InputError with which the result refused the input.
        unsupported: Why the model itself does not take this input, so that there is nothing to check.
        problem: What is wrong: another exception, another structure, not finite, nothing to compare.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shape: tuple[int, ...]
    error: float | None = None
    tensors: int = 0
    elements: int = 0
    compared: str = "outputs"
    refused: str | None = None
    unsupported: str | None = None
    problem: str | None = None


class Latency(BaseModel):
    """Milliseconds of single calls, interleaved with the others' calls.

    Attributes:
        median_ms: The median.
        spread: The interquartile range over the median.
        ratio: The median, over the rounds, of this call's time over eager's in the same round.
        ratio_spread: The interquartile range of that ratio.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    median_ms: float
    spread: float
    ratio: float
    ratio_spread: float


class Row(BaseModel):
    """What one tool made of one model; docs/benchmarks.md says what every field means.

    `own_rounding` is how far the model itself is from its float64 copy on the example, in relative RMS; it is measured
    where an error is above what is allowed of models that round well, else None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["prunekit-zoo-1"] = "prunekit-zoo-1"
    model: str
    source: str
    tool: Tool
    size: int
    threads: int
    versions: dict[str, str] = {}
    kernels: str | None = None
    engine: str | None = None
    notes: tuple[str, ...] = ()
    input_effect: float | None = None
    own_rounding: float | None = None
    example: Check | None = None
    batch: Check | None = None
    other_size: Check | None = None
    latencies: dict[str, Latency] = {}
    rounds: int = 0
    compile_problem: str | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    seconds: float | None = None
    is_original_unchanged: bool | None = None
    exception_type: str | None = None
    exception: str | None = None

    @property
    def checks(self) -> dict[str, Check]:
        """The checks that took place, by the name of their column."""
        named = {"example": self.example, "batch 2": self.batch, "other size": self.other_size}
        return {name: check for name, check in named.items() if check is not None}


def read_rows(path: Path) -> list[Row]:
    """Read what `append_row` wrote; a missing file has no rows, and half a line at its end is dropped.

    Raises:
        InputError: It is a folder, cannot be read, or has a line that is no row.
    """
    return read_json_lines(path, Row, "bench.zoo", has_half_line=True)


def append_row(path: Path, row: Row) -> None:
    """Add one row to the file."""
    with path.open("a") as file:
        file.write(to_lines([row]))
