"""What pytest's processes make for each other is made once, and anew after it failed."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from tests.support import shared_folder
from tests.support.shared_folder import made_once


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folder, "shared_folder", lambda: tmp_path)


def _slowly(folder: Path) -> None:
    with (folder / "calls").open("a") as calls:
        calls.write("begun\n")
        calls.flush()
        time.sleep(0.2)
        calls.write("done\n")


def _read() -> None:
    assert (made_once("part", _slowly) / "calls").read_text() == "begun\ndone\n"


def test_several_processes_make_it_once_and_wait_for_it() -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_read) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    _read()


def test_what_failed_is_made_anew() -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"):
        made_once("part", fail)
    _read()
