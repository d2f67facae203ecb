"""A disk that is full or read-only, and a folder without permission, end in one sentence, as other input does."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import typer
from safetensors import SafetensorError

from prunekit.cli.ending import user_errors
from prunekit.errors import is_disk_full

FULL = "Error: Expected free space on the disk, got none. Free some, then give the same command again.\n"


def _end(error: Exception, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(typer.Exit) as ended, user_errors(verbose=False):
        raise error
    return ended.value.exit_code, capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "runs/first/results.csv"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence_and_a_failure(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert _end(error, capsys) == (1, FULL)


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EROFS, "which is read-only"),
        (errno.EACCES, "without the permission to"),
        (errno.ENOTDIR, "where a file is in a folder's place"),
        (errno.EISDIR, "which is a folder"),
        (errno.EEXIST, "where something else is already"),
    ],
)
def test_a_place_that_cannot_be_written_is_bad_input(number: int, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = _end(OSError(number, os.strerror(number), "/mnt/data"), capsys)
    assert (code, printed) == (2, f"Error: Expected a place that can be read and written, got /mnt/data, {why}.\n")


def test_other_errors_of_the_system_are_told_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = _end(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/proc/x"), capsys)
    assert code == 1
    assert printed.startswith("Error: FileNotFoundError: ")
    assert not is_disk_full(ValueError("no space"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_write_that_fails_for_want_of_space_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), user_errors(verbose=False), Path("/dev/full").open("w") as file:
        file.write("x" * 100_000)
    assert capsys.readouterr().err == FULL
