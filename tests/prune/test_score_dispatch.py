"""Scores are found by name in one table; a name that is not there never falls through to another score."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunekit.detection import MODELS, DetectionTask
from prunekit.errors import InputError
from prunekit.pipeline import SilentProgress
from prunekit.pipeline.scoring import IMAGE_SCORES, REFERENCES, ScoreConfig, make_scores
from prunekit.prune import SCORES, Score, score_model, score_named

MODEL = MODELS["yolov3-tiny"](num_classes=2, width=0.125).eval()
TASK = DetectionTask.of(MODEL, 0.125)


class OneImage:
    """Training data that says whether it was looked at."""

    def __init__(self) -> None:
        self.looks = 0

    def __len__(self) -> int:
        return 1

    def batches(self, order: list[int], batch_size: int, workers: int) -> Any:
        self.looks += 1
        targets = [{"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "labels": torch.tensor([1])}]
        yield torch.rand(1, 3, 32, 32), targets


def test_every_score_that_looks_at_images_is_in_the_table_and_no_other() -> None:
    assert IMAGE_SCORES.keys() == {name for name, score in SCORES.items() if score.needs_batches}


@pytest.mark.parametrize("name", ["mine", "", "Taylor", "deep_lift"])
def test_an_unknown_score_is_an_error_that_lists_the_known_ones(name: str) -> None:
    for call in (
        lambda: make_scores(MODEL, TASK, name, ScoreConfig(), None, None, SilentProgress()),
        lambda: score_model(MODEL, name),
        lambda: score_named(name),
    ):
        with pytest.raises(InputError, match=f"one of {', '.join(SCORES)}, got {name!r}"):
            call()


def test_a_score_of_ones_own_that_looks_at_images_does_not_become_deeplift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORES, "fisher", Score("squared gradients"))
    data = OneImage()
    with pytest.raises(InputError, match="from images to be one of taylor, deeplift, got 'fisher'"):
        make_scores(MODEL, TASK, "fisher", ScoreConfig(), data, None, SilentProgress())  # type: ignore[arg-type]
    assert data.looks == 0
    expected = {"0": torch.ones(1)}
    monkeypatch.setitem(IMAGE_SCORES, "fisher", lambda model, task, batches, config, attack: expected)
    assert make_scores(MODEL, TASK, "fisher", ScoreConfig(), data, None, SilentProgress()) is expected  # type: ignore[arg-type]


def test_an_unknown_reference_does_not_become_zeros() -> None:
    config = ScoreConfig(reference="median")
    with pytest.raises(InputError, match=f"one of {', '.join(REFERENCES)}, got 'median'"):
        make_scores(MODEL, TASK, "deeplift", config, OneImage(), None, SilentProgress())  # type: ignore[arg-type]
