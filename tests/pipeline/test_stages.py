"""Stages as functions: what is there is not computed again, and odd data and settings do what one would expect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.attacks import PgdConfig
from prunekit.errors import InputError
from prunekit.pipeline import SilentProgress
from prunekit.pipeline import steps as stages
from prunekit.pipeline.checkpoint import Checkpoint, Training, Workspace
from prunekit.pipeline.scoring import ScoreConfig
from prunekit.pipeline.store import STATE, WorkStore
from prunekit.prune import MaskRule, sparsity
from prunekit.training.config import SCORE_OPTIMIZATION, TrainConfig
from prunekit.training.data import ImagesInMemory
from prunekit.training.objectives import ObjectiveConfig
from prunekit.training.state import TrainState, save_checkpoint, tensors_digest
from tests.support.training_problems import rectangles, small_detector, tiny_task

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = TrainConfig(epochs=1, max_steps=4, batch_size=3, learning_rate=1e-3, checkpoint_every=2)
HYDRA = {"epochs": 1, "max_steps": 3, "batch_size": 3}


class Listening(SilentProgress):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(WorkStore(tmp_path), Listening())


def _start(num_classes: int = 2) -> Checkpoint:
    model = small_detector(num_classes).eval()
    return Checkpoint(model, tiny_task(num_classes, 0.01), tensors_digest(model.state_dict()))


def _training(objective: str = "clean", data: ImagesInMemory | None = None, **knobs: Any) -> Training:
    return Training(rectangles() if data is None else data, "d" * 64, objective, ObjectiveConfig(**knobs))


def _all_stages(workspace: Workspace, training: Training, scores: str = "taylor", num_classes: int = 2) -> Checkpoint:
    trained = stages.pretrain(workspace, _start(num_classes), training, CONFIG)
    found, sha256 = stages.score(workspace, trained, scores, ScoreConfig(score_images=4, batch_size=2), training)
    config = SCORE_OPTIMIZATION.updated(**HYDRA)
    pruned, churn = stages.prune_optimized(workspace, trained, found, sha256, MaskRule(50), training, config)
    assert 0 <= churn <= 1
    return stages.finetune(workspace, pruned, training, CONFIG)


def test_the_same_work_is_computed_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _all_stages(workspace, _training())

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    for name in ("optimize", "make_scores", "save_model", "save_scores"):
        monkeypatch.setattr(stages, name, fail)
    again = _all_stages(workspace, _training())
    assert again.sha256 == first.sha256
    with pytest.raises(AssertionError, match="computed again"):
        _all_stages(workspace, _training("n-fgsm"))


def test_stages_do_not_touch_what_they_are_given(workspace: Workspace) -> None:
    start = _start()
    before = tensors_digest(start.model.state_dict())
    trained = stages.pretrain(workspace, start, _training(), CONFIG)
    assert tensors_digest(start.model.state_dict()) == before
    middle = tensors_digest(trained.model.state_dict())
    scores, sha256 = stages.score(workspace, trained, "scaled", ScoreConfig(), None)
    stages.finetune(
        workspace, stages.prune_one_shot(workspace, trained, scores, sha256, MaskRule(50)), _training(), CONFIG
    )
    assert tensors_digest(trained.model.state_dict()) == middle != before


def test_dropped_weights_stay_zero_through_finetuning(workspace: Workspace) -> None:
    tuned = _all_stages(workspace, _training())
    assert tuned.masks is not None
    assert sparsity(tuned.masks) == pytest.approx(0.5, abs=0.01)
    for name, mask in tuned.masks.items():
        weight = tuned.model.get_submodule(name).get_parameter("weight")
        assert not weight[~mask].any()


def _garbage(path: Path) -> None:
    path.write_bytes(b"no state")


def _of_other_settings(path: Path) -> None:
    save_checkpoint(path, TrainState(1, {}), TrainConfig(epochs=7))


@pytest.mark.parametrize("spoil", [_garbage, _of_other_settings])
def test_a_spoilt_state_is_not_trusted(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    expected = stages.pretrain(Workspace(WorkStore(tmp_path / "a"), Listening()), _start(), _training(), CONFIG)
    (name,) = [path.name for path in (tmp_path / "a").iterdir()]
    (tmp_path / "b" / name).mkdir(parents=True)
    spoil(tmp_path / "b" / name / STATE)
    progress = Listening()
    found = stages.pretrain(Workspace(WorkStore(tmp_path / "b"), progress), _start(), _training(), CONFIG)
    assert found.sha256 == expected.sha256
    assert len(progress.messages) == 1
    assert progress.messages[0].endswith("starting this stage over")


@pytest.mark.parametrize("scores", ["scaled", "taylor", "deeplift"])
@pytest.mark.parametrize("objective", ["clean", "pgd-at", "trades", "free", "n-fgsm", "smoothing"])
def test_images_without_boxes_train_and_score(workspace: Workspace, objective: str, scores: str) -> None:
    tuned = _all_stages(workspace, _training(objective, rectangles(empty=True)), scores)
    assert all(value.isfinite().all() for value in tuned.model.state_dict().values())


def test_one_class_is_enough(workspace: Workspace) -> None:
    tuned = _all_stages(workspace, _training("trades", rectangles(num_classes=1)), "deeplift", num_classes=1)
    assert tuned.model.num_classes == 1
    assert all(value.isfinite().all() for value in tuned.model.state_dict().values())


def test_an_empty_data_set_is_said(workspace: Workspace) -> None:
    empty = ImagesInMemory(torch.zeros(0, 3, 64, 64, dtype=torch.uint8), [])
    with pytest.raises(InputError, match="at least one training image"):
        stages.pretrain(workspace, _start(), _training(data=empty), CONFIG)


def test_eps_0_trains_on_the_clean_images_twice(tmp_path: Path) -> None:
    losses = {}
    for name, training in (
        ("clean", _training()),
        ("pgd-at", _training("pgd-at", attack=PgdConfig(0.0, step_size=0.02, steps=2))),
    ):
        workspace = Workspace(WorkStore(tmp_path / name), SilentProgress())
        stages.pretrain(workspace, _start(), training, TrainConfig(epochs=1, max_steps=1, batch_size=3))
        (log,) = (tmp_path / name).glob("*/losses.csv")
        losses[name] = float(log.read_text().splitlines()[1].split(",")[3])
    assert losses["pgd-at"] == pytest.approx(2 * losses["clean"], rel=1e-5)


def test_channels_are_permuted_once_before_blocks_are_pruned(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, image = _start(), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert stages.permute(workspace, start, "block1x4", None, image) is start
    assert stages.permute(workspace, start, "filter", 50, image) is start
    permuted = stages.permute(workspace, start, "block1x4", 50, image)
    assert permuted.sha256 != start.sha256
    for a, b in zip(start.model(image), permuted.model(image), strict=True):
        torch.testing.assert_close(a, b)
    monkeypatch.setattr(stages, "permute_channels", None)
    assert stages.permute(workspace, start, "block1x4", 50, image).sha256 == permuted.sha256


@pytest.mark.parametrize("ratio", [0, 99])
def test_ratios_0_and_99(workspace: Workspace, ratio: float) -> None:
    start, training = _start(), _training()
    scores, sha256 = stages.score(workspace, start, "scaled", ScoreConfig(), None)
    config = SCORE_OPTIMIZATION.updated(**HYDRA)
    one_shot = stages.prune_one_shot(workspace, start, scores, sha256, MaskRule(ratio))
    optimized, churn = stages.prune_optimized(workspace, start, scores, sha256, MaskRule(ratio), training, config)
    for pruned in (one_shot, optimized):
        assert pruned.masks is not None
        dropped = sum(int((~mask).sum()) for mask in pruned.masks.values())
        assert dropped == sum(int(mask.numel() * ratio / 100) for mask in pruned.masks.values())
    x = torch.rand(1, 3, 64, 64)
    same = [torch.equal(a, b) for a, b in zip(start.model(x), one_shot.model(x), strict=True)]
    assert all(same) == (ratio == 0)
    assert churn == 0 or ratio > 0


def test_finetuning_needs_masks_and_looking_scores_need_images(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="prune it first"):
        stages.finetune(workspace, _start(), _training(), CONFIG)
    with pytest.raises(InputError, match="'taylor' look at training images"):
        stages.score(workspace, _start(), "taylor", ScoreConfig(), None)
