"""Training that is stopped anywhere and goes on from its file ends in the same bits as training that is not."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prunekit.detection import DetectionTask
from prunekit.detection.task import AUGMENTATION
from prunekit.errors import InputError
from prunekit.training.augment import AugmentConfig
from prunekit.training.config import TrainConfig
from prunekit.training.data import TrainingData
from prunekit.training.log import TrainingLog
from prunekit.training.loop import optimize
from prunekit.training.objectives import Clean, Objective, ObjectiveConfig, make_objective
from prunekit.training.state import TrainState, load_checkpoint, save_checkpoint, tensors_digest
from tests.support import ROOT
from tests.support.training_problems import (
    ClassifierLosses,
    labeled_images,
    rectangles,
    small_classifier,
    small_detector,
)

ADAMW = TrainConfig(
    epochs=3, batch_size=4, augmentation=AugmentConfig(**AUGMENTATION), checkpoint_every=1, ema_decay=0.9
)
DETECTION = ADAMW.updated(sizes=(32, 64))
SGD = ADAMW.updated(optimizer="sgd", learning_rate=0.02, weight_decay=1e-3)
SETTINGS = {
    "adamw with average": ADAMW,
    "sgd without average": SGD.updated(ema_decay=None),
    "sgd without momentum": SGD.updated(momentum=0.0),
    "adamw in bfloat16": ADAMW.updated(precision="bfloat16"),
    "sgd with frozen batch norm": SGD.updated(batch_norm="frozen"),
}


def _run(
    model: nn.Module,
    data: TrainingData,
    objective: Objective,
    config: TrainConfig,
    folder: Path | None = None,
    state: TrainState | None = None,
) -> TrainState:
    """Train with a checkpoint after every step, each under its own name."""

    def save(reached: TrainState) -> None:
        if folder is not None:
            save_checkpoint(folder / f"{reached.step}.safetensors", reached, config)

    return optimize(model, dict(model.named_parameters()), data, objective, config, state=state, save=save).clone()


def _assert_same_bits(actual: TrainState, expected: TrainState) -> None:
    assert actual.step == expected.step
    ours, theirs = actual.tensors(), expected.tensors()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("objective", ["clean", "pgd-at", "free"])
def test_resuming_from_any_step_ends_in_the_same_bits(setting: str, objective: str, tmp_path: Path) -> None:
    config = SETTINGS[setting]
    made = make_objective(objective, ClassifierLosses(), ObjectiveConfig(replays=2))
    expected = _run(small_classifier(), labeled_images(), made, config, tmp_path)
    assert expected.step == 9
    assert (expected.delta is not None) == (objective == "free")
    assert bool(expected.averages) == (config.ema_decay is not None)
    for stop in (1, 4, 8, 9):
        state = load_checkpoint(tmp_path / f"{stop}.safetensors", config)
        assert state.step == stop
        _assert_same_bits(_run(small_classifier(seed=9), labeled_images(), made, config, state=state), expected)


@pytest.mark.parametrize("objective", ["free", "trades", "n-fgsm", "smoothing"])
def test_detectors_resume_in_the_same_bits(objective: str, tmp_path: Path) -> None:
    model, other = small_detector(), small_detector(seed=9)
    made = make_objective(objective, DetectionTask.of(model), ObjectiveConfig(replays=2))
    expected = _run(model, rectangles(), made, DETECTION, tmp_path)
    state = load_checkpoint(tmp_path / "3.safetensors", DETECTION)
    _assert_same_bits(_run(other, rectangles(), made, DETECTION, state=state), expected)


def test_a_state_that_is_changed_ends_elsewhere(tmp_path: Path) -> None:
    """What the tests above compare does depend on every part of the state."""
    config = ADAMW
    made = make_objective("free", ClassifierLosses(), ObjectiveConfig(replays=2))
    expected = _run(small_classifier(), labeled_images(), made, config, tmp_path)
    state = load_checkpoint(tmp_path / "3.safetensors", config)
    tensors = state.tensors()
    for name in ("module/0.weight", "optimizer/0.weight/exp_avg_sq", "averages/5.running_var", "delta"):
        spoilt = TrainState.from_tensors(3, tensors | {name: tensors[name] * 1.01 + 0.01})
        ended = _run(small_classifier(), labeled_images(), made, config, state=spoilt)
        assert tensors_digest(ended.tensors()) != tensors_digest(expected.tensors()), name


def test_resuming_needs_every_average(tmp_path: Path) -> None:
    config = ADAMW.updated(max_steps=1)
    state = _run(small_classifier(), labeled_images(), Clean(ClassifierLosses()), config)
    without = dataclasses.replace(state, averages={})
    with pytest.raises(InputError, match=r"Expected the state of this model, but it lacks '0\.weight'"):
        _run(small_classifier(), labeled_images(), Clean(ClassifierLosses()), config, state=without)


def test_states_of_other_models_are_refused(tmp_path: Path) -> None:
    config = ADAMW.updated(max_steps=1)
    one, two = small_detector(1), small_detector(2)
    state = _run(one, rectangles(num_classes=1), Clean(DetectionTask.of(one)), config)
    before = {name: value.clone() for name, value in two.state_dict().items()}
    with pytest.raises(InputError, match=r"'predict32\.head\.weight' of shape \[21, .* got \[18, "):
        _run(two, rectangles(), Clean(DetectionTask.of(two)), config, state=state)
    assert all(torch.equal(value, before[name]) for name, value in two.state_dict().items())
    with pytest.raises(InputError, match="Expected the state of this model"):
        _run(small_classifier(), labeled_images(), Clean(ClassifierLosses()), config, state=state)


CHECKPOINT_CONFIG = ADAMW.updated(max_steps=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    _run(small_classifier(), labeled_images(), Clean(ClassifierLosses()), CHECKPOINT_CONFIG, tmp_path)
    return tmp_path / "2.safetensors"


def test_workers_device_and_intervals_may_change_but_nothing_else(checkpoint: Path) -> None:
    other = CHECKPOINT_CONFIG.updated(workers=3, device="cuda", checkpoint_every=77)
    assert load_checkpoint(checkpoint, other).step == 2
    with pytest.raises(InputError, match=r"to be of learning_rate 0\.5, but it is of 0\.012"):
        load_checkpoint(checkpoint, CHECKPOINT_CONFIG.updated(learning_rate=0.5))


def test_every_damage_is_noticed(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    flipped = bytearray(whole)
    flipped[header + (len(whole) - header) // 2] ^= 1
    for content in (b"", whole[:100], whole[:-1], bytes(flipped), b"not a checkpoint" * 10):
        checkpoint.write_bytes(content)
        with pytest.raises(InputError, match=r"Expected a training state"):
            load_checkpoint(checkpoint, CHECKPOINT_CONFIG)
    checkpoint.unlink()
    with pytest.raises(InputError, match="Expected a training state, but there is no file"):
        load_checkpoint(checkpoint, CHECKPOINT_CONFIG)
    save_file({"weight": torch.zeros(2)}, checkpoint, metadata={"prunekit": json.dumps({"format": "something"})})
    with pytest.raises(InputError, match="none that prunekit wrote"):
        load_checkpoint(checkpoint, CHECKPOINT_CONFIG)


def test_tied_weights_survive(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(192, 192)
            self.second = nn.Linear(192, 3)
            self.first_again = self.first

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.first_again(self.first(x.flatten(1)))
            logits: Tensor = self.second(hidden)
            return logits

    config = ADAMW
    expected = _run(Tied(), labeled_images(), Clean(ClassifierLosses()), config, tmp_path)
    state = load_checkpoint(tmp_path / "5.safetensors", config)
    _assert_same_bits(_run(Tied(), labeled_images(), Clean(ClassifierLosses()), config, state=state), expected)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.training.test_checkpoints import run_in_folder
run_in_folder(Path(sys.argv[1]), kill_at=int(sys.argv[2]))
"""
KILLED_CONFIG = ADAMW.updated(checkpoint_every=3)


def run_in_folder(folder: Path, kill_at: int | None = None) -> TrainState:
    """Train with one checkpoint file and a log, going on from what is there; kill the process at a step."""
    path = folder / "state.safetensors"
    state = load_checkpoint(path, KILLED_CONFIG) if path.is_file() else None

    def kill(step: int) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    model = small_classifier()
    with TrainingLog(folder, resumed_step=state.step if state else 0) as log:
        return optimize(
            model,
            dict(model.named_parameters()),
            labeled_images(),
            make_objective("free", ClassifierLosses(), ObjectiveConfig(replays=2)),
            KILLED_CONFIG,
            state=state,
            save=lambda reached: save_checkpoint(path, reached, KILLED_CONFIG),
            log=log,
            after_step=[kill],
        ).clone()


def test_kill_9_twice_ends_in_the_same_bits_and_the_same_log(tmp_path: Path) -> None:
    for folder in ("killed", "whole"):
        (tmp_path / folder).mkdir()
    expected = run_in_folder(tmp_path / "whole")
    for kill_at in (5, 7):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(kill_at), str(ROOT)]
        assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    _assert_same_bits(run_in_folder(tmp_path / "killed"), expected)
    logs = [(tmp_path / folder / "losses.csv").read_bytes() for folder in ("killed", "whole")]
    assert logs[0] == logs[1]
    files = [(tmp_path / folder / "state.safetensors").read_bytes() for folder in ("killed", "whole")]
    assert files[0] == files[1]
