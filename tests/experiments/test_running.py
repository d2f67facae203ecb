"""Experiments in processes: workers and drivers that are killed, the pipeline's own runs, and Ray where it is there."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunekit.experiments import LocalPool, Plan, do_experiment, measured_values, standings
from prunekit.experiments.driver import drive
from prunekit.experiments.ray_pool import RayPool
from prunekit.experiments.records import Records
from prunekit.progress import SilentProgress
from tests.support.commands import invoke
from tests.support.toy_work import PLAN, ToyWork, toy_jobs


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()  # which nobody has waited for
    except OSError:
        return False


def test_a_worker_that_is_killed_is_replaced_and_its_job_done(tmp_path: Path) -> None:
    pool = LocalPool(ToyWork(tmp_path, "die seed_1"), 1)
    assert drive(toy_jobs(tmp_path), Records(tmp_path), lambda: pool, SilentProgress()) == {}
    calls = [line.split() for line in (tmp_path / "calls.txt").read_text().splitlines()]
    assert [name for name, _ in calls] == ["seed_0", "seed_1", "seed_1", "seed_2"]
    assert len({pid for _, pid in calls}) == 2
    _wait_until(lambda: not any(_is_alive(int(pid)) for _, pid in calls))


def test_a_job_that_loses_its_worker_twice_is_one_sentence_and_stops_no_other(tmp_path: Path) -> None:
    pool = LocalPool(ToyWork(tmp_path, "perish seed_1"), 1)
    failures = drive(toy_jobs(tmp_path), Records(tmp_path), lambda: pool, SilentProgress())
    assert failures == {"seed_1": "its worker process ended with exit code -9"}
    calls = [line.split()[0] for line in (tmp_path / "calls.txt").read_text().splitlines()]
    assert calls == ["seed_0", "seed_1", "seed_1", "seed_2"]


def _experiment(out: str) -> None:
    path = Path(out)
    do_experiment(
        Plan(**PLAN), path, lambda work, threads: LocalPool(ToyWork(path, "hang seed_1"), 1), SilentProgress()
    )


def test_a_driver_that_is_killed_takes_its_workers_along_and_another_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = multiprocessing.get_context("forkserver").Process(target=_experiment, args=(str(out),))
    driver.start()
    _wait_until(lambda: (out / "hang-seed_1").exists() or not driver.is_alive())
    assert driver.pid is not None
    os.kill(driver.pid, signal.SIGKILL)
    driver.join()
    worker = int((out / "calls.txt").read_text().split()[-1])
    _wait_until(lambda: not _is_alive(worker))
    assert [each.state for each in standings(out)] == ["done", "interrupted", "waiting"]
    _experiment(str(out))
    assert [each.state for each in standings(out)] == ["done"] * 3


TINY = PLAN | {
    "settings": {
        "threads": 1, "objective": "clean", "attack": "paper", "latency_runs": 3, "max_steps": 1, "limit": 4,
        "pretrain": {"epochs": 1}, "optimize": {"epochs": 1}, "finetune": {"epochs": 1},
    },
    "factors": {"structure": ["unstructured", "filter"]},
    "seeds": [0, 1],
}  # fmt: skip
# What is timed, and what timing chooses: layers that run sparse, widths of compacted models.
MEASUREMENTS = ("compacted_", "latency", "speedup", "_ms", "date", "sparse_layers")


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: v for name, v in row.items() if not any(part in name for part in MEASUREMENTS)} for row in rows]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("experiment") / "matrix"
    _run(out)
    return out


def _run(out: Path, **options: Any) -> None:
    plan = out.parent / "plan.yaml"
    plan.write_text(yaml.safe_dump(TINY))
    result = invoke("experiment", {"out": out, **options}, str(plan))
    assert result.exit_code == 0, result.output


def test_rows_describe_themselves(matrix: Path) -> None:
    rows = _rows(matrix)
    assert len(rows) == 2 * (1 + 2 * 2)
    assert {(row["run"], row["seed"]) for row in rows} == {("seed_0", "0"), ("seed_1", "1")}
    assert {(row["model"], row["width"], row["objective"], row["attack"]) for row in rows} == {
        ("yolov3-tiny", "0.06", "clean", "paper")
    }
    assert all(row[name] for row in rows for name in ("prunekit", "torch", "machine", "processor", "precision"))
    assert len({path.name for path in (matrix / "stages").glob("pretrain-*")}) == 2


def test_the_same_command_changes_nothing(matrix: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (matrix / "runs").rglob("*")}
    rows = (matrix / "rows.csv").read_text()
    _run(matrix)
    assert {path: path.stat().st_mtime_ns for path in (matrix / "runs").rglob("*")} == before
    assert (matrix / "rows.csv").read_text() == rows


def test_two_jobs_at_a_time_give_the_same_rows(matrix: Path, tmp_path: Path) -> None:
    _run(tmp_path / "other", jobs=2)
    assert _rows(tmp_path / "other") == _rows(matrix)


def test_status_and_statistics_of_its_folder(matrix: Path, tmp_path: Path) -> None:
    result = invoke("experiment", {}, "status", str(matrix))
    assert "2 of 2 jobs done." in result.stdout
    values = measured_values(matrix)
    assert values.metrics == ("attacked_ap", "ap", "latency_ms")
    assert len(values.given["latency_ms"]) == 2
    unpruned = [
        values.of((structure, "scaled", "one-shot", "uniform"), "ap", 0) for structure in ("unstructured", "filter")
    ]
    assert unpruned[0] == unpruned[1]
    assert set(unpruned[0]) == {"0", "1"}
    result = invoke("statistics", {"out": tmp_path}, str(matrix))
    assert result.exit_code == 0, result.stderr
    assert "latency_ms, unstructured vs. filter" in result.stdout
    assert (tmp_path / "statistics.html").is_file()
    assert len(list((tmp_path / "figures").glob("sample-*.png"))) == 4


def test_pages_of_its_runs(matrix: Path, tmp_path: Path) -> None:
    runs = [str(path) for path in sorted((matrix / "runs").iterdir())]
    result = invoke("report", {"out": tmp_path}, *runs)
    assert result.exit_code == 0, result.stderr
    assert all((Path(run) / "report.html").is_file() for run in runs)
    assert "<td>seed</td><td>0</td><td>1</td>" in (tmp_path / "comparison.html").read_text()
    result = invoke("report", {}, str(matrix))
    assert result.exit_code == 2
    assert "Expected a run folder with results.csv" in result.stderr


def test_ray_gives_the_same_rows(matrix: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'prunekit[ray]'")
    _run(tmp_path / "other", executor="ray")
    assert _rows(tmp_path / "other") == _rows(matrix)


def test_a_ray_worker_that_is_killed_is_replaced_and_its_job_done(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'prunekit[ray]'")
    work = ToyWork(tmp_path, "die seed_1")
    assert drive(toy_jobs(tmp_path), Records(tmp_path), lambda: RayPool(work, 1), SilentProgress()) == {}
    calls = [line.split()[0] for line in (tmp_path / "calls.txt").read_text().splitlines()]
    assert sorted(calls) == ["seed_0", "seed_1", "seed_1", "seed_2"]


def test_ray_that_is_not_installed_is_one_sentence(tmp_path: Path) -> None:
    try:
        import ray  # noqa: F401
    except ImportError:
        plan = tmp_path / "plan.yaml"
        plan.write_text(yaml.safe_dump(TINY))
        result = invoke("experiment", {"out": tmp_path / "out", "executor": "ray"}, str(plan))
        assert result.exit_code == 1
        assert "pip install 'prunekit[ray]'" in result.stderr.replace("\n", " ")
    else:
        pytest.skip("Ray is installed")
