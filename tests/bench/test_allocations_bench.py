"""The comparison of allocations goes through on a few steps, its table has a row for each, and later rows join it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import allocations
from prunekit.attacks import PRESETS
from prunekit.attacks.pgd import PgdConfig
from tests.support.classes_of_images import write_classes


def test_a_table_of_allocations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, per_class in (("train", 4), ("test", 2)):
        write_classes(tmp_path / "data" / part, ("blue", "green"), per_class, size=16, seed=per_class)
    options = f"--data {tmp_path / 'data'} --out {tmp_path / 'out'} --models resnet20 --seeds 0 --objective clean"
    steps = "--allocations lamp --attacks fgsm --pretrain-epochs 1 --finetune-epochs 1 --max-steps 1"
    allocations.main(f"{options} {steps}".split())
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert [row["allocation"] for row in rows] == ["unpruned", "lamp"]
    assert rows[1]["kept_macs"] <= 0.5 * rows[0]["kept_macs"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| model | allocation | clean | pgd20 | kept_macs | ms | fgsm |"
    assert len(lines) == 4

    file, other = tmp_path / "out/rows.jsonl", rows[0] | {"seed": 1, "clean": 0.0}
    file.write_text("".join(json.dumps(row) + "\n" for row in (*rows, other)) + '{"model": "resnet')
    allocations.main(f"{options} {steps} --attacks paper".split())
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["seed"], row["allocation"]) for row in kept] == [(0, "unpruned"), (0, "lamp"), (1, "unpruned")]
    assert kept[2] == other
    for row, before in zip(kept[:2], rows, strict=True):
        assert row.items() >= {name: value for name, value in before.items() if name != "ms"}.items()  # timed anew
        assert "paper" in row
    assert capsys.readouterr().out.splitlines()[0] == lines[0]  # figures that every row has


def test_what_begins_from_clean_training_has_a_row_for_it(tmp_path: Path) -> None:
    for part, per_class in (("train", 4), ("test", 2)):
        write_classes(tmp_path / "data" / part, ("blue", "green"), per_class, size=16, seed=per_class)
    options = f"--data {tmp_path / 'data'} --out {tmp_path / 'out'} --models resnet20 --seeds 0 --objective pgd-at"
    steps = "--allocations uniform --attacks= --clean-epochs 1 --pretrain-epochs 1 --finetune-epochs 0 --train-steps 2"
    allocations.main(f"{options} {steps}".split())
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert [row["allocation"] for row in rows] == ["unpruned, before adversarial training", "unpruned", "uniform"]
    assert PRESETS["hydra-2"] == PgdConfig(8 / 255, step_size=10 / 255, steps=2, random_start=True)
