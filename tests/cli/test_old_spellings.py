"""British spellings of options are read as the American ones, and a note says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from prunekit import cli
from prunekit.cli.old_spellings import respell


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "run --optimise-epochs 3 --pruning one-shot,optimised",
            "run --optimize-epochs 3 --pruning one-shot,optimized",
        ),
        ("run --pruning=optimised --greyscale", "run --pruning=optimized --grayscale"),
        (
            "prune --optimise-learning-rate=0.1 --optimise-scores",
            "prune --optimize-learning-rate=0.1 --optimize-scores",
        ),
        ("run --out optimised --pruning one-shot", "run --out optimised --pruning one-shot"),
        ("run --out=greyscale", "run --out=greyscale"),
    ],
)
def test_old_spellings_are_the_new_ones(old: str, new: str) -> None:
    assert respell(old.split()) == new.split()


def test_a_note_says_what_to_type(tmp_path: Path) -> None:
    arguments = ["evaluate", "--weights", str(tmp_path / "none"), "--data", str(tmp_path), "--out", str(tmp_path / "o")]
    old, new = (CliRunner().invoke(cli.app, [*arguments, option]) for option in ("--greyscale", "--grayscale"))
    assert (old.exit_code, new.exit_code) == (2, 2)
    assert old.stderr.startswith("Note: --greyscale is spelled --grayscale now; the old spelling will go.")
    assert old.stderr.splitlines()[1:] == new.stderr.splitlines()
    assert "there is no file" in new.stderr
