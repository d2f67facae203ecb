"""Does prunekit keep its word on models that nobody here chose? torchvision's and timm's, accelerated and compacted.

    pip install 'prunekit[zoo]'
    python -m bench.zoo --out rows.jsonl             # both tools on all models
    python -m bench.zoo --out rows.jsonl --resume    # go on where it stopped
    python -m bench.zoo --summary rows.jsonl         # table and verdict only

Every model has random weights and live BatchNorm. For accelerate every convolution but the first has 90 % zeros, for
compact half of each convolution's filters are zero. Each model and tool runs in a process of its own, so that a crash
or a hang is a row like any other. The last lines are a table and a verdict; the exit code is 1 where a criterion is
not met, and 2 after bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.scripts import command_line, one_sentence
from bench.time_limit import run_process
from bench.zoo_models import REGISTRY, Registry, load_registry
from bench.zoo_rows import TOOLS, Row, Tool, append_row, read_rows
from bench.zoo_summary import judge, table
from bench.zoo_trial import Trial
from prunekit.benchmark.rows import to_lines
from prunekit.errors import InputError
from prunekit.files import write_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, then print the table and the verdict."""
    with one_sentence():
        options = parse_arguments(arguments)
        if options.summary is not None and not options.summary.exists():
            raise InputError(f"Expected --summary to name a file of rows, got {options.summary}, which does not exist.")
        rows = read_rows(options.summary) if options.summary else run_zoo(options)
    verdict = judge(rows)
    print("\n".join([table(rows), "", *verdict.lines]))
    sys.exit(0 if verdict.is_met else 1)


def run_zoo(options: argparse.Namespace) -> list[Row]:
    """Run every trial whose row is not in the file yet, and return all rows of the file.

    Raises:
        InputError: The file holds rows and `--resume` was not given, holds something else, or cannot be written; there
            is no such model; torchvision or timm is missing.
    """
    trials, rows = list(_trials(options, load_registry(options.registry))), read_rows(options.out)
    if rows and not options.resume:
        raise InputError(f"Expected --resume or a new file, got {options.out}, which holds {len(rows)} rows.")
    try:
        write_text(options.out, to_lines(rows))  # without the half line that a killed process leaves
    except OSError as error:
        raise InputError(
            f"Expected a place for a file, got {options.out}, which cannot be written: {error}."
        ) from error
    done = {(row.model, row.tool) for row in rows}
    for number, trial in enumerate(trials, 1):
        if (trial.model, trial.tool) in done:
            continue
        row = run_child(trial, options.time_limit)
        append_row(options.out, row)
        rows.append(row)
        print(f"{number}/{len(trials)} {describe(row)}", file=sys.stderr, flush=True)
    return rows


def run_child(trial: Trial, time_limit: float) -> Row:
    """Run a trial in a process of its own, and return its row, or one that says how the process ended."""
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "row.json", Path(folder) / "log"
        command = [sys.executable, "-m", "bench.zoo_trial", json.dumps(asdict(trial)), str(path)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **_threads(trial.threads)}
        with log.open("w") as output:
            code = run_process(command, time_limit, output, env)[0]
        if code is None:
            return _failed(trial, "Timeout", f"it took longer than {time_limit:g} s")
        if code == 0 and path.exists():
            return Row.model_validate_json(path.read_text())
        last = (log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _failed(trial, "Crash", f"{how}: {last}")


def describe(row: Row) -> str:
    """Return a row as one line for people who wait."""
    if row.exception_type is not None:
        return f"{row.model} {row.tool}: {row.exception_type}: {row.exception}"
    errors = ", ".join(
        f"{name} {check.refused or check.unsupported or check.problem or f'{check.error:.1e}'}"
        for name, check in row.checks.items()
    )
    latency = row.latencies.get("prunekit")
    speed = "not timed" if latency is None else f"{1 / latency.ratio:.2f}× in {row.seconds:.0f} s"
    return f"{row.model} {row.tool}: {row.engine or 'compacted'}, {speed}; {errors}"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options.

    Raises:
        InputError: Neither `--out` nor `--summary` was given.
    """
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, help="JSON lines, one a model and tool")
    parser.add_argument("--summary", type=Path, help="print the table and verdict of this file, and measure nothing")
    parser.add_argument("--resume", action="store_true", help="keep the rows of --out and run what is not there")
    parser.add_argument("--models", default="", help="only these: resnet18,timm.dla34")
    parser.add_argument("--limit", type=int, default=None, help="only the first N models")
    parser.add_argument("--accelerate", action="store_true", help="accelerate only")
    parser.add_argument(
        "--compact", action="store_true", help="compact only; with --accelerate: both, as without either"
    )
    parser.add_argument(
        "--compile", action="store_true", help="time torch.compile with freezing as well; takes minutes"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--tuning-seconds", type=float, default=5.0, help="for accelerate")
    parser.add_argument("--time-limit", type=float, default=900.0, help="seconds for one model and tool")
    parser.add_argument("--registry", default=REGISTRY, help="models from elsewhere: module:mapping")
    options = parser.parse_args(arguments)
    if (options.out is None) == (options.summary is None):
        raise InputError("Expected either --out or --summary, got both or neither.")
    for name in ("limit", "threads", "time_limit"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            raise InputError(f"Expected --{name.replace('_', '-')} to be positive, got {getattr(options, name)}.")
    return options


def _trials(options: argparse.Namespace, registry: Registry) -> Iterator[Trial]:
    names = options.models.split(",") if options.models else list(registry)
    unknown = [name for name in names if name not in registry]
    if unknown:
        some = ", ".join(list(registry)[:3])
        raise InputError(f"Expected --models to name models such as {some}, got {', '.join(unknown)}.")
    tools: list[Tool] = [tool for tool in TOOLS if getattr(options, tool)] or list(TOOLS)
    for name in names[: options.limit]:
        for tool in tools:
            how = options.registry, options.threads, options.tuning_seconds, options.compile
            yield Trial(name, tool, *how)


def _failed(trial: Trial, kind: str, text: str) -> Row:
    model = load_registry(trial.registry)[trial.model]
    return Row(
        model=trial.model, source=model.source, tool=trial.tool, size=model.size, threads=trial.threads,
        exception_type=kind, exception=text,
    )  # fmt: skip


def _threads(count: int) -> dict[str, str]:
    return {name: str(count) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the child ends, too
    main()
