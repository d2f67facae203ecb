"""Rows of a bench as JSON lines: one a competitor and problem, each with all that is needed to compare it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from prunekit.benchmark.competition import Kind, label_of
from prunekit.benchmark.engines.precisions import FLOAT32, Precision
from prunekit.errors import InputError
from prunekit.files import write_text

Question = Literal["layers", "end-to-end"]
Lined = TypeVar("Lined", bound=BaseModel)


class Row(BaseModel):
    """One competitor on one problem; docs/benchmarks.md says what every field means."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    format: Literal["prunekit-bench-1"] = "prunekit-bench-1"
    # What was measured together: a speed-up counts only inside one run.
    run: str
    date: str
    question: Question
    # The machine.
    system: str
    cpu: str
    instruction_set: str | None
    versions: dict[str, str]
    kernels: str
    matrix_unit: bool = False  # files of earlier versions do not say so
    threads: int
    load: float
    # The problem.
    model: str
    width: float
    image_size: int
    structure: str = "unstructured"  # files of earlier versions do not say so
    layer: str | None
    count: int
    # The competitor.
    competitor: str
    kind: Kind
    precision: Precision = FLOAT32  # files of earlier versions do not say so
    ratio: float
    density: float
    kept_macs: int
    weight_bytes: int
    choices: dict[str, int]
    relative_rms: float
    # Milliseconds of single calls; the spread is the interquartile range over the median.
    runs: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    spread: float
    speedup: float
    against: str
    speedup_over_any: float | None = None  # None in files of earlier versions, whose peers were float32
    against_any: str | None = None
    speedup_over_eager: float
    # Rates and bounds.
    gflops: float
    percent_of_peak: float
    peak_gflops: float
    peak_kind: str
    dense_gemm_gflops: float
    stream_gb_per_s: float
    shared_write_ns: float | None = None  # with more than one thread
    bound_ms: float
    # MiB, of a fresh process each; None where it was not asked for.
    imports_mib: float | None = None
    serving_mib: float | None = None
    peak_mib: float | None = None
    # Competitors that were not timed, and why.
    not_timed: dict[str, str]

    @property
    def label(self) -> str:
        """The competitor's name, with the ratio where it is one of several."""
        return label_of(self.competitor, self.kind, self.ratio)

    @property
    def problem(self) -> tuple[object, ...]:
        """What must be equal in two rows for them to answer the same question on the same machine."""
        return (*self.net, self.layer)

    @property
    def net(self) -> tuple[object, ...]:
        """The same for all layers of a net together."""
        machine = (self.system, self.cpu, self.instruction_set, tuple(sorted(self.versions.items())), self.kernels)
        return (*machine, self.question, self.threads, self.model, self.width, self.image_size, self.structure)

    @property
    def fastest_dense_ms(self) -> float:
        """The fastest float32 peer's median, in the same run."""
        return self.median_ms * self.speedup

    @property
    def fastest_any(self) -> str:
        """The fastest peer of any precision, in the same run."""
        return self.against_any or self.against

    @property
    def fastest_any_ms(self) -> float:
        """Its median."""
        return self.median_ms * (self.speedup_over_any or self.speedup)

    @property
    def eager_ms(self) -> float:
        """The median of torch eager, in the same run."""
        return self.median_ms * self.speedup_over_eager


def read_rows(path: Path) -> list[Row]:
    """Read a file that `append_rows` wrote; a missing one has no rows.

    Raises:
        InputError: it is a folder, cannot be read, or has a line that is no row.
    """
    return read_json_lines(path, Row, "prunekit bench")


def read_json_lines(path: Path, kind: type[Lined], what: str, has_half_line: bool = False) -> list[Lined]:
    """Read a file of JSON lines; a missing one has none.

    Args:
        path: the file.
        kind: what each line is; its field `format` has a default that says so.
        what: whose rows they are, for messages.
        has_half_line: whether a last line that does not end is one that was not written to its end, and is left out.

    Raises:
        InputError: it is a folder, cannot be read, or has a line of another kind.
    """
    if not path.exists():
        return []
    if path.is_dir():
        raise InputError(f"Expected a file of JSON lines, got a folder: {path}.")
    try:
        lines = path.read_text().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Expected a file of JSON lines, but {path} cannot be read: {error}.") from None
    wanted = lines[:-1] if has_half_line and lines and not lines[-1].endswith("\n") else lines
    return [_parsed(line, f"{path}, line {n}", kind, what) for n, line in enumerate(wanted, 1) if line.strip()]


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file, all of them or none: it is written anew under a temporary name and renamed."""
    write_text(path, to_lines([*read_rows(path), *rows]))


def to_lines(rows: Iterable[BaseModel]) -> str:
    """Return rows as JSON lines."""
    return "".join(row.model_dump_json() + "\n" for row in rows)


def latest(rows: Sequence[Row]) -> list[Row]:
    """Return, for each problem, the rows of its last run, in the order of the file."""
    runs = {row.problem: row.run for row in rows}
    return [row for row in rows if runs[row.problem] == row.run]


def _parsed(line: str, where: str, kind: type[Lined], what: str) -> Lined:
    file_format = kind.model_fields["format"].default
    try:
        content = json.loads(line)
    except json.JSONDecodeError:
        raise InputError(f"{where}: expected a row of {what}, got text that is not JSON.") from None
    if not isinstance(content, dict) or content.get("format") != file_format:
        raise InputError(f'{where}: expected a row of {what} ("format": "{file_format}"), got another thing.')
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        raise InputError(f"{where}: expected a row of {what}, got a wrong {name}: {problem['msg']}.") from None
