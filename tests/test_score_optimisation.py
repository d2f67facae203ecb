"""The settings that scores are optimised with, from a configuration to changed masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunekit.detection import CocoDataset
from prunekit.errors import InputError
from prunekit.pipeline import RunConfig, SilentProgress, make_config
from prunekit.pipeline.detector_file import open_detector
from prunekit.pipeline.stage_store import StageStore, sha256
from prunekit.pipeline.stages import Artefact, Bench, prune_optimised, score
from prunekit.pipeline.train_config import SCORE_OPTIMISATIONS
from prunekit.pipeline.training_plan import make_training, score_choices, score_optimisation
from prunekit.prune import MaskRule

pytestmark = pytest.mark.usefixtures("one_thread")

GOOD = {"model": "yolov3-tiny", "weights": "w", "data": "d", "out": "o"}


@pytest.mark.parametrize(
    ("choices", "optimizer", "rate"),
    [
        ({}, "sgd", 0.1),
        ({"score_optimizer": "adamw"}, "adamw", 0.003),
        ({"score_optimizer": "adamw", "optimise_learning_rate": 0.02}, "adamw", 0.02),
    ],
)
def test_each_optimizer_has_its_own_rate_unless_one_is_given(
    choices: dict[str, Any], optimizer: str, rate: float
) -> None:
    knobs = score_optimisation(make_config(**GOOD, **choices, optimise_epochs=3))
    assert (knobs.optimizer, knobs.learning_rate, knobs.epochs) == (optimizer, rate, 3)
    assert knobs.ema_decay is None  # an average of scores would rank as none of them did


def test_an_optimizer_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"--score-optimizer: must be one of sgd, adamw, got 'lion'"):
        make_config(**GOOD, score_optimizer="lion")


def test_in_few_steps_adamw_moves_masks_that_sgd_leaves_alone(shapes_config: RunConfig, tmp_path: Path) -> None:
    config = make_config(**{**shapes_config.model_dump(), "objective": "clean", "max_steps": 6, "augment": False})
    dataset = CocoDataset.open(config.data, config.image_size)
    model = open_detector(config.weights, config.model, dataset.num_classes, config.width).model
    start = Artefact(model, config.width, sha256(config.weights))
    training = make_training(config, dataset, "0", SilentProgress())
    bench, rule = Bench(StageStore(tmp_path), SilentProgress()), MaskRule(80)
    scores, digest = score(bench, start, score_choices(config, "scaled"), None)
    before = rule(scores)
    moved = {}
    for optimizer in SCORE_OPTIMISATIONS:
        knobs = score_optimisation(make_config(**{**config.model_dump(), "score_optimizer": optimizer}))
        pruned, churn = prune_optimised(bench, start, scores, digest, rule, training, knobs)
        assert pruned.masks is not None
        kept = sum(int(mask.count_nonzero()) for mask in before.values())
        new = sum(int((pruned.masks[name] & ~mask).count_nonzero()) for name, mask in before.items())
        assert churn == pytest.approx(new / kept)
        moved[optimizer] = churn
    assert moved["adamw"] > 10 * moved["sgd"] > 0
