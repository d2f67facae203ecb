"""The log of losses continues where the resumed state stood, and nothing is written twice or by halves."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from prunekit.training.log import TrainingLog

ROW = {"epoch": 0, "learning_rate": 0.1, "loss": 1 / 3, "grad_norm": 2.0}
HEADING = "step,epoch,learning_rate,loss,grad_norm\n"


def _line(step: int) -> str:
    return f"{step},0,0.1,0.3333333333333333,2.0\n"


def test_a_row_a_step_with_every_digit(tmp_path: Path) -> None:
    with TrainingLog(tmp_path / "new") as log:
        for step in (1, 2):
            log.step(step, ROW)
        assert log.path.read_text() == HEADING + _line(1) + _line(2), "rows are there before the log is closed"


def test_rows_beyond_the_resumed_step_are_cut_and_half_ones_too(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text(HEADING + "".join(_line(step) for step in range(1, 6)) + "6,0,0.1,0.3")
    with TrainingLog(tmp_path, resumed_step=3) as log:
        log.step(4, ROW)
    assert path.read_text() == HEADING + "".join(_line(step) for step in range(1, 5))
    path.write_text(HEADING + _line(1) + "2,0,0.1,0.")
    with TrainingLog(tmp_path, resumed_step=2):
        pass
    assert path.read_text() == HEADING + _line(1)


def test_training_from_the_start_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "losses.csv").write_text(HEADING + _line(1))
    with TrainingLog(tmp_path):
        pass
    assert (tmp_path / "losses.csv").read_text() == HEADING


def test_hooks_have_columns_of_their_own_and_may_leave_them_empty(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, extra_columns=["churn"]) as log:
        log.step(1, ROW)
        log.step(2, ROW | {"churn": 0.25, "not a column": 1.0})
    assert log.path.read_text().splitlines() == [
        "step,epoch,learning_rate,loss,grad_norm,churn",
        _line(1).strip() + ",",
        _line(2).strip() + ",0.25",
    ]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is not installed")
def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TrainingLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.step(step, ROW | {"loss": float(step)})
    with TrainingLog(tmp_path, resumed_step=1) as log:
        log.step(2, ROW | {"loss": 20.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 20.0)]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="TensorBoard is installed")
def test_without_tensorboard_only_the_csv_is_written(tmp_path: Path) -> None:
    with TrainingLog(tmp_path) as log:
        log.step(1, ROW)
    assert [path.name for path in tmp_path.iterdir()] == ["losses.csv"]
