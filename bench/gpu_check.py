"""Everything that a GPU is asked, within ten minutes: the tests, then layers and nets against cuDNN, and a verdict.

    python -m bench.gpu_check --out runs/gpu [--minutes 9.5]

Each part is a process of its own that is ended when its time is over, whatever it does; rows are in files by then, and
the verdict, which is printed last, is made of those. Parts that end early leave their time to the later ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import gpu, gpu_nets
from bench.scripts import Row, check_device, command_line, one_sentence, read_rows
from bench.time_limit import TimeLimit, run_process

_MARGIN = 15.0  # seconds that a part has to end by itself, and this program for the verdict


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: of it.
        command: gives the program's arguments for so many minutes.
        share: of the seconds that are left when it begins, the most that it gets.
        rows: file of JSON lines that it writes, or None.
        verdict: prints what the new rows say.
    """

    name: str
    command: Callable[[float], Sequence[str]]
    share: float
    rows: Path | None = None
    verdict: Callable[[list[Row]], None] | None = None


def parts_of(out: Path) -> list[Part]:
    """Return the parts of `make gpu`."""
    python, layers, nets = sys.executable, out / "rows.jsonl", out / "nets.jsonl"

    def module(name: str, rows: Path) -> Callable[[float], Sequence[str]]:
        return lambda minutes: [python, "-m", name, "--out", str(rows), "--minutes", f"{minutes:.2f}", "--no-verdict"]

    return [
        Part("tests", lambda _: [python, "-m", "pytest", "-q", "-rs", "tests/gpu_checks/test_gpu.py"], 0.3),
        Part("layers", module("bench.gpu", layers), 0.55, layers, gpu.print_verdict),
        Part("nets", module("bench.gpu_nets", nets), 1.0, nets, gpu_nets.print_verdict),
    ]


def run_parts(parts: Sequence[Part], limit: TimeLimit, margin: float = _MARGIN) -> list[str]:
    """Run the parts, then print the verdict; return a line on each part's end."""
    write, ends, before = sys.stdout.write, [], {}
    for part in parts:
        before[part.name] = len(_rows(part))
        seconds = max(0.0, part.share * (limit.left - margin))
        write(f"{part.name}: at most {seconds:.0f} s\n")
        sys.stdout.flush()
        code, _ = run_process(part.command(max(0.0, seconds - margin) / 60), seconds)
        how = f"ended after {seconds:.0f} s, its time" if code is None else f"exit code {code}" if code else "done"
        ends.append(f"{part.name}: {how}")
    write("\nVerdict\n")
    for part, end in zip(parts, ends, strict=True):
        write(f"{end}\n")
        if part.verdict is not None:
            _judge(part.name, part.verdict, _rows(part)[before[part.name] :])
    sys.stdout.flush()
    return ends


def _judge(name: str, verdict: Callable[[list[Row]], None], rows: list[Row]) -> None:
    if rows:
        verdict(rows)
    else:
        sys.stdout.write(f"{name}: no row was measured, so there is nothing to judge\n")


def _rows(part: Part) -> list[Row]:
    return [] if part.rows is None else read_rows(part.rows)


def main(arguments: list[str] | None = None) -> None:
    """Run all; exit with 1 if a part did not end well, and with 2 where there is no GPU."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything")
    options = parser.parse_args(arguments)
    with one_sentence():
        check_device("cuda")
    options.out.mkdir(parents=True, exist_ok=True)
    ends = run_parts(parts_of(options.out), TimeLimit(60 * options.minutes))
    sys.exit(any("exit code" in end for end in ends))


if __name__ == "__main__":
    main()
