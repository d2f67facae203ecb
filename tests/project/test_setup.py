"""`make setup` says what is wrong, and what to do, before it makes or downloads anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.make_runs import run_make


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("PYTHON=no-such-python", "Expected Python at PYTHON=no-such-python, got no such command."),
        ("SPACE=100000000", "Expected 100000000 GiB of free disk for "),
    ],
)
def test_a_step_that_cannot_be_done_says_what_to_do(setting: str, sentence: str, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    done = run_make("setup", setting, f"VENV={venv}")
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[0]
    assert not venv.exists()
