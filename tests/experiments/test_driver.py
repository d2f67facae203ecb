"""Jobs in their order, failures, second tries and resuming, with workers in this process; turns on a machine."""

from __future__ import annotations

import csv
import errno
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import InputError
from prunekit.experiments import Job, Plan, do_experiment, records, standings
from prunekit.experiments.driver import Event, drive
from prunekit.experiments.local_pool import outcome
from prunekit.experiments.ray_pool import require_answer
from prunekit.experiments.records import Records
from prunekit.experiments.turns import InTurns, Turns
from prunekit.pipeline.store import claimed, write_json
from prunekit.progress import RunsAlone, SilentProgress
from tests.support.toy_work import PLAN, ToyWork, toy_jobs


class PoolHere:
    """Does a job when it is waited for, the one that was given last first."""

    def __init__(self, work: ToyWork, size: int = 2) -> None:
        self.size, self._work = size, work
        self._given: list[Job] = []
        self.is_closed = False

    def submit(self, job: Job) -> None:
        self._given.append(job)
        assert len(self._given) <= self.size

    def wait(self, seconds: float) -> list[Event]:
        job = self._given.pop()
        kind, value = outcome(self._work, job, SilentProgress())
        return [kind(job.name, *value)]

    def close(self) -> None:
        self.is_closed = True


def _drive(jobs: list[Job], out: Path, behavior: str = "") -> dict[str, str]:
    pool = PoolHere(ToyWork(out, behavior))
    failures = drive(jobs, Records(out), lambda: pool, SilentProgress())
    assert pool.is_closed
    return failures


def _calls(out: Path) -> list[str]:
    return [line.split()[0] for line in (out / "calls.txt").read_text().splitlines()]


def test_every_job_is_done_once_and_not_again(tmp_path: Path) -> None:
    jobs = toy_jobs(tmp_path)
    assert _drive(jobs, tmp_path) == {}
    assert sorted(_calls(tmp_path)) == ["seed_0", "seed_1", "seed_2"]
    assert drive(jobs, Records(tmp_path), pytest.fail, SilentProgress()) == {}
    with Records(tmp_path).write_rows(jobs).open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["seed_0", "seed_1", "seed_2"]


def test_what_lost_its_files_is_done_again(tmp_path: Path) -> None:
    jobs = toy_jobs(tmp_path)
    _drive(jobs, tmp_path)
    (tmp_path / "runs" / "seed_1" / "results.csv").unlink()
    (tmp_path / "calls.txt").unlink()
    assert _drive(jobs, tmp_path) == {}
    assert _calls(tmp_path) == ["seed_1"]


def test_a_job_is_known_by_all_that_tells_its_rows_apart(tmp_path: Path) -> None:
    structure = {"structure": "unstructured"}
    changes: list[dict[str, Any]] = [
        {},
        {"ratios": [0, 75]},
        {"factors": {"structure": "filter"}},
        {"factors": structure | {"allocation": "lamp"}},
        {"factors": structure | {"budget": "macs=50%"}, "ratios": []},
        {"factors": structure | {"budget": "macs=25%"}, "ratios": []},
        {"factors": structure | {"budget": "macs=25%", "allocation": "lamp"}, "ratios": []},
    ]
    for change in changes:
        (job,) = toy_jobs(tmp_path, seeds=[0], **change)
        assert Records(tmp_path).result(job) is None
        assert _drive([job], tmp_path) == {}
        assert Records(tmp_path).result(job) is not None
    assert _calls(tmp_path) == ["seed_0"] * len(changes)


def test_a_failure_stops_no_other_job_and_is_tried_once_more(tmp_path: Path) -> None:
    assert _drive(toy_jobs(tmp_path), tmp_path, "break seed_1") == {"seed_1": "OSError: No space left on device"}
    assert sorted(_calls(tmp_path)) == ["seed_0", "seed_1", "seed_1", "seed_2"]


def test_a_second_try_may_succeed(tmp_path: Path) -> None:
    assert _drive(toy_jobs(tmp_path), tmp_path, "stumble seed_2") == {}
    assert sorted(_calls(tmp_path)) == ["seed_0", "seed_1", "seed_2", "seed_2"]


def test_bad_input_is_not_tried_again(tmp_path: Path) -> None:
    assert _drive(toy_jobs(tmp_path), tmp_path, "refuse seed_0") == {"seed_0": "Expected better, got this."}
    assert sorted(_calls(tmp_path)) == ["seed_0", "seed_1", "seed_2"]


def test_jobs_wait_for_who_trains_for_them_even_if_that_fails(tmp_path: Path) -> None:
    settings = {"objective": "clean", "threads": 1, "pretrain": {"epochs": 1}}
    jobs = toy_jobs(tmp_path, settings=settings, factors={"finetune_epochs": [1, 2, 3]}, seeds=[0])
    failed = _drive(jobs, tmp_path, "break finetune_epochs_1-seed_0")
    assert list(failed) == ["finetune_epochs_1-seed_0"]
    assert _calls(tmp_path)[:2] == ["finetune_epochs_1-seed_0"] * 2
    assert sorted(_calls(tmp_path)[2:]) == ["finetune_epochs_2-seed_0", "finetune_epochs_3-seed_0"]


def test_jobs_that_wait_for_each_other_are_one_sentence(tmp_path: Path) -> None:
    one, other, free = toy_jobs(tmp_path)
    jobs = [replace(one, after=other.name), replace(other, after=one.name), free]
    with pytest.raises(InputError, match="got some that wait for each other: seed_0, seed_1"):
        _drive(jobs, tmp_path)
    assert _calls(tmp_path) == ["seed_2"]


@pytest.mark.parametrize(("name", "state", "before"), [("seed_2", "running", 1), ("seed_0", "done", 2)])
def test_a_driver_whose_disk_is_full_loses_nothing(
    name: str, state: str, before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = toy_jobs(tmp_path)

    def fail(path: Path, content: dict[str, Any]) -> None:
        if (path.stem, content["state"]) == (name, state):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_json(path, content)

    with monkeypatch.context() as full:
        full.setattr(records, "write_json", fail)
        with pytest.raises(OSError, match="No space left on device"):
            _drive(jobs, tmp_path)
    done = [job.name for job in jobs if Records(tmp_path).result(job) is not None]
    assert len(done) == before
    (tmp_path / "calls.txt").unlink()
    assert _drive(jobs, tmp_path) == {}
    assert sorted([*done, *_calls(tmp_path)]) == ["seed_0", "seed_1", "seed_2"]


def test_an_experiment_ends_with_its_rows_and_says_how_far_it_is(tmp_path: Path) -> None:
    out, plan = tmp_path / "out", Plan(**PLAN)
    failures = do_experiment(plan, out, lambda work, threads: PoolHere(ToyWork(out, "refuse seed_1")), SilentProgress())
    assert list(failures) == ["seed_1"]
    assert (out / "rows.csv").read_text() == "run,ratio\nseed_0,0\nseed_2,0\n"
    found = [(each.job.name, each.state, each.reason) for each in standings(out)]
    assert found == [("seed_0", "done", ""), ("seed_1", "failed", "Expected better, got this."), ("seed_2", "done", "")]
    Records(out).start(toy_jobs(out)[1])
    assert [each.state for each in standings(out)] == ["done", "interrupted", "done"]
    with claimed(out):
        assert [each.state for each in standings(out)] == ["done", "running", "done"]
        with pytest.raises(InputError, match="another process is working"):
            do_experiment(plan, out, lambda work, threads: PoolHere(ToyWork(out)), SilentProgress())


def test_many_jobs_without_content(tmp_path: Path) -> None:
    jobs = toy_jobs(tmp_path, seeds=list(range(120)))
    assert _drive(jobs, tmp_path) == {}
    assert len(_calls(tmp_path)) == 120


def test_who_times_something_is_alone(tmp_path: Path) -> None:
    one, other = Turns(tmp_path), Turns(tmp_path)
    seen: list[str] = []
    progress = InTurns(SilentProgress(), other)
    assert isinstance(progress, RunsAlone)

    def time_alone() -> None:
        with progress.alone():
            seen.append("alone")
            list(progress.track(range(2), "timing", 2))  # no turn of its own: it would wait for itself

    with one.turn(), one.turn():
        thread = threading.Thread(target=time_alone)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        seen.append("turn")
    thread.join(10)
    with one.turn():
        seen.append("turn")
    assert seen == ["turn", "alone", "turn"]


def test_turns_of_several_jobs_go_on_together(tmp_path: Path) -> None:
    one, other = Turns(tmp_path), Turns(tmp_path)
    with one.turn(), other.turn():
        pass
    for _ in InTurns(SilentProgress(), one).track(range(2), "stepping", 2):
        with other.turn():
            pass
    with one.turn(), one.alone():  # a turn under way is interrupted, not waited for
        pass
    one.close()
    with other.alone():
        pass


def test_no_cluster_at_the_address_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        with pytest.raises(InputError, match="Expected a Ray cluster at RAY_ADDRESS, 127"):
            require_answer(f"127.0.0.1:{taken.getsockname()[1]}")
        taken.listen()
        require_answer(f"127.0.0.1:{taken.getsockname()[1]}")
    for address in ("", "auto", "local", "ray://cluster:10001"):
        require_answer(address)
