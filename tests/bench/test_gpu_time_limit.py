"""make gpu ends in time, whatever its parts do: the limits, with a clock that is turned by hand and short processes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_check, gpu_nets
from bench.gpu_check import Part, run_parts
from bench.time_limit import TimeLimit, run_process


class Clock:
    """Tells the seconds that it was given."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> str:
        self.now += seconds
        return "done"


def test_what_would_not_fit_is_left_out_and_shorter_work_still_runs() -> None:
    clock = Clock()
    limit = TimeLimit(10.0, clock)
    assert limit.run("long", lambda: clock.work(6.0)) == "done"
    assert limit.left == 4.0
    assert limit.run("long", lambda: clock.work(6.0)) is None  # the last one took 6
    assert limit.run("short", lambda: clock.work(1.0), expected=3.9) == "done"
    assert limit.run("short", lambda: clock.work(1.0), expected=3.0) is None
    assert limit.run("short", lambda: clock.work(5.0)) == "done"  # as long as its like: it may be wrong once
    assert limit.left == 0.0
    assert limit.run("other", lambda: clock.work(0.0)) is None
    assert limit.skipped == ["long: 4 s were left", "short: 3 s were left", "other: 0 s were left"]


def test_a_process_is_ended_with_what_it_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(alive)!r}).touch()"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.monotonic()
    code, printed = run_process([sys.executable, "-c", parent], 1.5, subprocess.PIPE)
    assert (code, printed.strip()) == (None, "begun")
    assert time.monotonic() - begin < 60
    assert run_process([sys.executable, "-c", "print(7); exit(3)"], 60, subprocess.PIPE) == (3, "7\n")
    time.sleep(3)
    assert not alive.exists()


def test_the_verdict_comes_last_whatever_the_parts_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One part hangs, one fails, one writes rows and is ended in the middle of a line."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"row": "of an earlier run"}) + "\n")
    hangs = "import time; time.sleep(100)"
    writes = f"f = open({str(rows)!r}, 'a'); f.write('{{\"row\": 1}}\\n{{\"row'); f.flush(); {hangs}"
    judged: list[dict[str, Any]] = []
    minutes: list[float] = []

    def command(program: str) -> Any:
        def tell(m: float) -> list[str]:
            minutes.append(m)
            return [sys.executable, "-c", program]

        return tell

    parts = [
        Part("hangs", command(hangs), 0.1),
        Part("fails", command("exit(2)"), 0.9),
        Part("writes", command(writes), 0.5, rows, judged.extend),
    ]
    begin = time.monotonic()
    ends = run_parts(parts, TimeLimit(8.0), margin=0.5)
    assert time.monotonic() - begin < 60
    assert [end.split(" after")[0] for end in ends] == ["hangs: ended", "fails: exit code 2", "writes: ended"]
    assert judged == [{"row": 1}]
    assert all(0 < 60 * m < 8 for m in minutes)
    printed = capsys.readouterr().out.splitlines()
    assert printed[printed.index("Verdict") + 1 :] == ends


def test_the_parts_of_make_gpu_fit_its_time() -> None:
    parts = gpu_check.parts_of(Path("runs"))
    assert [part.name for part in parts] == ["tests", "layers", "nets"]
    clock = Clock()
    limit = TimeLimit(570.0, clock)
    for part in parts:  # each takes all that it gets
        clock.work(part.share * (limit.left - 15.0))
    assert limit.left >= 15.0
    for part in parts[1:]:
        assert "--no-verdict" in part.command(1.0)


def test_compiling_is_ended_in_time_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    answers = iter([(None, ""), (1, ""), (0, "warning\n12.5\n")])

    def run(command: list[str], seconds: float, output: int) -> tuple[int | None, str]:
        asked.append(seconds)
        return next(answers)

    monkeypatch.setattr(gpu_nets, "run_process", run)
    options = argparse.Namespace(width=1.0, device="cuda")
    clock = Clock()
    limit = TimeLimit(200.0, clock)
    first = gpu_nets.compiled("yolov3", 416, options, "float16", limit)
    assert first["note"] == "torch.compile was ended after 90 s"
    clock.work(140.0)
    assert (
        gpu_nets.compiled("yolov3", 416, options, "float16", limit)["note"] == "torch.compile failed with exit code 1"
    )
    assert gpu_nets.compiled("yolov3", 416, options, "float16", limit)["compile_ms"] == 12.5
    assert asked == [90.0, 60.0, 60.0]
    clock.work(40.0)
    assert gpu_nets.compiled("yolov3", 416, options, "float32", limit)["note"].endswith("left out: 20 s were left")
