"""The comparison of a pool with fixed attacks: equal passes, a row for each model, tables to be checked by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import adaptive
from prunekit.attacks import PRESETS
from prunekit.errors import InputError

QUICK = "--seeds 3 --images 4 --val-images 2 --image-size 64 --width 0.03 --clean-epochs 1 --epochs 1 --max-steps 1"


@pytest.fixture(autouse=True)
def _names() -> Iterator[None]:
    """Forget the attacks that the script registers."""
    before = dict(PRESETS)
    PRESETS.update(adaptive.OF_BENCH)
    yield
    PRESETS.clear()
    PRESETS.update(before)


def test_every_arm_takes_seven_passes_a_step() -> None:
    assert {adaptive.passes_a_step(attack) for attack in adaptive.ARMS.values()} == {7}


def test_a_pool_of_unequal_attacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"equally many steps in pool:paper,standard, got \[5, 20\]"):
        adaptive.passes_a_step("pool:paper,standard")


@pytest.mark.parametrize("seeds", ["0,a", "", "1,1", "-1"])
def test_seeds_that_are_none_are_refused_in_a_sentence(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        adaptive.parsed(["--out", "runs", f"--seeds={seeds}"])
    assert ended.value.code == 2
    assert f"--seeds: expected different seeds from 0, as in 0,1,2, got {seeds!r}" in capsys.readouterr().err


def test_tables_are_of_means_and_of_differences_within_a_seed() -> None:
    found = {"fixed linf": (0.1, 0.3), "fixed l2": (0.2, 0.2), "pool": (0.3, 0.4)}
    rows = [
        {"trained against": arm, "seed": seed, "ap": {"clean": values[seed]}}
        for arm, values in found.items()
        for seed in (0, 1)
    ]
    lines = adaptive.tables(rows).splitlines()
    assert lines[2:5] == [
        "| fixed linf | 0.200 ± 0.141 |", "| fixed l2 | 0.200 ± 0.000 |", "| pool | 0.350 ± 0.071 |"
    ]  # fmt: skip
    assert lines[-2:] == ["| pool - fixed linf | +0.150 ± 0.071 |", "| pool - fixed l2 | +0.150 ± 0.071 |"]


def test_a_few_steps_go_through_and_are_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adaptive.main(f"--out {tmp_path} {QUICK}".split())
    first = capsys.readouterr().out
    rows = [json.loads(line) for line in first.splitlines() if line.startswith("{")]
    assert [(row["seed"], row["trained against"], row["passes"]) for row in rows] == [
        (3, "fixed linf", 7), (3, "fixed l2", 7), (3, "pool", 7)
    ]  # fmt: skip
    assert [*rows[0]["ap"]] == ["clean", *adaptive.ATTACKS, "corrupted"]
    assert all(0 <= value <= 1 for row in rows for value in row["ap"].values())
    assert (tmp_path / "trained" / "pool-3" / "losses.csv").read_text().count("chance_paper-l2") == 1
    for config in tmp_path.glob("evaluated/*/config.yaml"):  # not at the network's usual size
        assert "image_size: 64" in config.read_text()
    models = {path: path.stat().st_mtime_ns for path in tmp_path.glob("trained/*/model.safetensors")}
    adaptive.main(f"--out {tmp_path} {QUICK}".split())
    assert capsys.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in models} == models
