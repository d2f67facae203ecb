"""The report shows the images whose answer an attack made wrong before those that it left alone."""

from __future__ import annotations

from prunekit.classification.task import ClassificationTask
from prunekit.detection.task import DetectionTask
from prunekit.pipeline.examples import NUM_EXAMPLES
from prunekit.report.page import _chosen
from prunekit.task import ModelSpec

EXAMPLES = [{"id": key, "class": "cat"} for key in range(6)]


def answers(wrong: set[int]) -> dict[int, dict[str, object]]:
    return {key: {"class": "dog" if key in wrong else "cat", "probability": 0.9} for key in range(6)}


def test_flipped_answers_come_first() -> None:
    task = ClassificationTask(ModelSpec("resnet20"))
    found = {
        ("a", False): answers({1}),  # wrong already: the attack takes nothing
        ("a", True): answers({1, 3, 5}),
        ("b", False): answers({1}),
        ("b", True): answers({1, 5}),
    }
    shown = [example["id"] for example in _chosen(EXAMPLES, task, ["a", "b"], found, is_attacked=True)]
    assert shown == [5, 3, 0, 1]
    assert len(shown) == NUM_EXAMPLES


def test_without_an_attack_and_for_detectors_they_keep_their_order() -> None:
    for task in (ClassificationTask(ModelSpec("resnet20")), DetectionTask(ModelSpec("yolov3-tiny"))):
        shown = _chosen(EXAMPLES, task, ["a"], {}, is_attacked=isinstance(task, DetectionTask))
        assert [example["id"] for example in shown] == [0, 1, 2, 3]
