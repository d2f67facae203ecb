"""The two smallest rooms: timing in turn, and files that are complete or absent."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from prunekit.comparison import relative_rms
from prunekit.errors import InputError
from prunekit.files import (
    atomic_path,
    check_writable_file,
    check_writable_folder,
    csv_text,
    write_bytes,
    write_text,
)
from prunekit.timing import Timing, time_in_turn


def test_calls_are_timed_in_turn_after_warming_up() -> None:
    order: list[str] = []
    times = time_in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, runs=3, warm_up=2)
    assert "".join(order) == "ab" * 5
    assert set(times) == {"a", "b"}
    assert 0 <= times["a"].median_ms <= times["a"].p90_ms <= times["a"].p99_ms


def test_percentiles_are_in_milliseconds() -> None:
    timing = Timing.of([0.001 * n for n in range(1, 102)])
    assert (timing.median_ms, timing.p90_ms, timing.p99_ms) == pytest.approx((51, 91, 100))


def test_relative_rms() -> None:
    x = torch.tensor([3.0, 4.0])
    assert relative_rms(x, x) == 0
    assert relative_rms(x, x * 1.5) == pytest.approx(0.5)
    assert relative_rms(x, x * torch.nan) == math.inf


def test_a_file_is_complete_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "made" / "a.txt"
    write_text(target, "é\n")
    assert target.read_bytes() == "é\n".encode()

    def half_write() -> None:
        with atomic_path(target) as temporary:
            assert temporary.suffix == ".txt"
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_write()
    assert target.read_text() == "é\n"
    write_bytes(target, b"new")
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]
    assert target.read_bytes() == b"new"


def test_a_place_for_files_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_writable_file(tmp_path / "new" / "folders" / "a.txt", "--out")
    check_writable_file(tmp_path / "file", "--out")  # to be replaced
    check_writable_folder(tmp_path, "--out")
    check_writable_folder(Path("relative"), "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "new" / "a.txt"):
        with pytest.raises(InputError, match=r"--out: expected a folder to write into, but .*/file is a file\."):
            check_writable_file(path, "--out")
    with pytest.raises(InputError, match="--json: expected a file to write, got a folder: "):
        check_writable_file(tmp_path, "--json")
    with pytest.raises(InputError, match=r"--out: expected a folder to write into, but .*/file is a file\."):
        check_writable_folder(tmp_path / "file", "--out")


def test_a_folder_without_permission_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user who is not root, whom the system refuses nothing."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(InputError, match=r"--out: expected a folder that can be written, got .*, which cannot"):
        check_writable_file(tmp_path / "new" / "a.txt", "--out")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder in which nobody can make one")
def test_a_folder_that_takes_no_folder_is_refused_before_the_work() -> None:
    with pytest.raises(InputError, match=r"--out: expected a folder that can be (made|written), .*/proc"):
        check_writable_folder(Path("/proc/new"), "--out")


def test_rows_become_csv_with_unix_line_ends_and_empty_cells_for_none() -> None:
    assert csv_text(("name", "value"), [["a, b", 0.1], ["c", None]]) == 'name,value\n"a, b",0.1\nc,\n'
