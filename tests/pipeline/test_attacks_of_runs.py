"""An attack in parts is made once for each batch of a run, whenever the run is stopped, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunekit.attacks import PRESETS, AttackLosses, AutoAttackConfig
from prunekit.attacks.autoattack import PARTS
from prunekit.pipeline import make_config, read_rows, run
from prunekit.pipeline import unit as unit_module
from tests.support.classes_of_images import write_classes
from tests.support.own_modules import SMALL_NET, own_modules

pytestmark = pytest.mark.usefixtures("one_thread")

MODULE = "attacked_net"


class Stopped(Exception):
    """What ends the process."""


class Counted(AutoAttackConfig):
    """AutoAttack in a few steps, which counts its batches and stops at one of them."""

    batches = 0
    stop_at: int | None = None

    def after_each_part(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        if Counted.batches == Counted.stop_at:
            raise Stopped
        Counted.batches += 1
        return super().after_each_part(model, x, losses, generator)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, Any]]:
    """Return the settings of a run of two models, under an attack in four batches."""
    monkeypatch.setattr(Counted, "batches", 0)
    monkeypatch.setattr(Counted, "stop_at", None)
    monkeypatch.setitem(PRESETS, "autoattack", Counted(8 / 255, steps=2, targets=1, queries=2))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    data = write_classes(tmp_path / "data", ("blue", "green", "red"), 5, size=8)
    with own_modules(tmp_path, monkeypatch, **{MODULE: SMALL_NET}):
        torch.save(net.state_dict(), "net.pt")
        yield {
            "model": f"{MODULE}:net", "weights": "net.pt", "data": data, "attack": "autoattack", "ratios": "0,50",
            "transfer": True, "batch_size": 4, "latency_runs": 3, "threads": 1,
        }  # fmt: skip


def _accuracies(folder: str) -> list[dict[str, str]]:
    rows = read_rows(Path(folder, "results.csv"))
    return [{name: value for name, value in row.items() if "accuracy" in name} for row in rows]


def test_no_batch_is_attacked_twice(settings: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(**settings, out="stopped")
    monkeypatch.setattr(Counted, "stop_at", 2)
    with pytest.raises(Stopped):
        run(config)
    monkeypatch.setattr(Counted, "stop_at", None)
    with monkeypatch.context() as timing:
        timing.setattr(unit_module, "accelerate_and_time", _stop)
        with pytest.raises(Stopped):
            run(config)
    run(config)
    assert Counted.batches == 8  # the transferred attack is that on the unpruned model
    run(make_config(**settings, out="whole"))
    assert Counted.batches == 16
    assert _accuracies("stopped") == _accuracies("whole")
    after = [f"attacked_accuracy_after_{part}" for part in PARTS]
    for row in _accuracies("whole"):
        assert list(row) == ["accuracy", "attacked_accuracy", "transfer_accuracy", *after]
        assert all(row.values())
    assert not [*Path("stopped/stages").glob("attack-*"), *Path("whole/stages").glob("attack-*")]


def test_attacked_images_are_those_of_the_data(settings: Mapping[str, Any], tmp_path: Path) -> None:
    other = write_classes(tmp_path / "other", ("blue", "green", "red"), 5, size=8, seed=1)
    Counted.stop_at = 2
    for data in (settings["data"], other):
        with pytest.raises(Stopped):
            run(make_config(**{**settings, "data": data}, out=f"run_{data.name}"), stages=tmp_path / "shared")
        Counted.stop_at += 2
    assert len(list((tmp_path / "shared").glob("attack-*"))) == 2


def _stop(*args: Any) -> None:
    raise Stopped
