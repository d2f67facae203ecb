"""Images that are decoded once: the same bits as decoding again, counted, and within the budget."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.detection import CocoDataset
from prunekit.detection.image_files import read_image
from prunekit.evaluation.evaluate import CaseResult, Subject, evaluate_cases
from prunekit.kept_images import KEPT_BYTES, KeptImages
from prunekit.pipeline import RunConfig, SilentProgress, make_config, read_rows, run
from prunekit.pipeline.checkpoint import open_checkpoint, requested_spec
from prunekit.pipeline.command_config import EvaluateStage
from prunekit.pipeline.evaluate_command import evaluate_stage
from prunekit.task import task_of
from prunekit.training.data import load_batches
from tests.support.coco_files import small_content, write_coco
from tests.support.loaded_batches import assert_same

EVERYTHING = 1 << 20
AS_FLOATS, AS_BYTES = 3 * 32 * 32 * 4, 3 * 32 * 32


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often this process has decoded each image file, by name."""
    counter: Counter[str] = Counter()

    def counting(path: Path, *arguments: Any) -> Any:
        counter[path.name] += 1
        return read_image(path, *arguments)

    monkeypatch.setattr("prunekit.detection.coco.read_image", counting)
    return counter


def small(folder: Path, budget: int | None = None, grayscale: bool = False) -> CocoDataset:
    """Three images at 32×32: two with a border, the third without, which is kept as bytes."""
    dataset = CocoDataset.open(write_coco(folder, small_content()), image_size=32, grayscale=grayscale)
    dataset.kept = None if budget is None else KeptImages(budget)
    return dataset


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("grayscale", [False, True])
@pytest.mark.parametrize("budget", [0, AS_BYTES, AS_FLOATS, AS_FLOATS + AS_BYTES, EVERYTHING])
def test_kept_batches_are_the_decoded_ones(tmp_path: Path, budget: int, grayscale: bool, workers: int) -> None:
    expected = small(tmp_path, grayscale=grayscale)
    dataset = small(tmp_path, budget, grayscale)
    assert dataset.kept is not None
    for order in ([2, 0, 1], None, [1, 2], None):
        found = load_batches(dataset, 2, workers, order)
        for a, b in itertools.zip_longest(load_batches(expected, 2, order=order), found):
            assert_same(a, b)
        assert dataset.kept.bytes_used <= budget


def test_each_image_is_decoded_once(tmp_path: Path, decoded: Counter[str]) -> None:
    dataset = small(tmp_path, EVERYTHING)
    for batch_size in (1, 2, 3, 2):
        list(load_batches(dataset, batch_size))
    dataset[0]
    assert decoded == {"a.png": 1, "b.png": 1, "c.png": 1}
    assert dataset.kept is not None
    assert dataset.kept.bytes_used == 2 * AS_FLOATS + AS_BYTES


def test_what_workers_decode_is_kept_here(tmp_path: Path, decoded: Counter[str]) -> None:
    dataset = small(tmp_path, EVERYTHING)
    list(load_batches(dataset, 2, workers=2))
    assert dataset.kept is not None
    assert all(record.id in dataset.kept for record in dataset.images)
    (dataset.image_folder / "a.png").unlink()
    assert len(list(load_batches(dataset, 2, workers=2))) == 2
    assert not decoded


def test_what_does_not_fit_is_decoded_again(tmp_path: Path, decoded: Counter[str]) -> None:
    dataset = small(tmp_path, AS_FLOATS + AS_BYTES)
    for _ in range(3):
        list(load_batches(dataset, 2))
    assert decoded == {"a.png": 1, "b.png": 3, "c.png": 1}
    assert dataset.kept is not None
    assert dataset.kept.bytes_used == AS_FLOATS + AS_BYTES


def test_the_budget_is_never_exceeded() -> None:
    generator = torch.Generator().manual_seed(0)
    for budget in (0, 1, 47, 48, 100, 500, KEPT_BYTES):
        kept = KeptImages(budget)
        images = [torch.rand(3, 2, 2, generator=generator) for _ in range(12)]
        images[::3] = [(image * 255).round() / 255 for image in images[::3]]
        for image_id, image in enumerate(images):
            kept.keep(image_id, image)
            kept.keep(image_id, image)
            assert kept.bytes_used <= budget
        found = {image_id: kept.get(image_id) for image_id in range(12)}
        assert sum(12 if i % 3 == 0 else 48 for i, x in found.items() if x is not None) == kept.bytes_used
        assert all(x is None or torch.equal(x, images[i]) for i, x in found.items())
    assert all(x is not None for x in found.values())


def test_bytes_give_every_pixel_value_back() -> None:
    image = (torch.arange(256, dtype=torch.float32) / 255).reshape(1, 16, 16).expand(3, -1, -1)
    kept = KeptImages(3 * 256)
    kept.keep(0, image)
    found = kept.get(0)
    assert found is not None
    assert torch.equal(found, image)


def test_a_kept_image_cannot_be_changed(tmp_path: Path) -> None:
    dataset = small(tmp_path, EVERYTHING)
    for index in range(3):
        before = dataset[index].image.clone()
        dataset[index].image.zero_()
        assert torch.equal(dataset[index].image, before)


@pytest.mark.usefixtures("one_thread")
def test_cases_give_the_same_figures_from_kept_images(shapes_config: RunConfig, decoded: Counter[str]) -> None:
    def cases(budget: int | None) -> list[CaseResult]:
        dataset = CocoDataset.open(shapes_config.data, shapes_config.image_size)
        dataset.kept = None if budget is None else KeptImages(budget)
        task = task_of(requested_spec("yolov3-tiny", shapes_config.width)).for_data(dataset)
        model = open_checkpoint(str(shapes_config.weights), task).model
        decoded.clear()
        subject = Subject(model, task, dataset, shapes_config, SilentProgress())
        return list(evaluate_cases(subject, ["fgsm", "paper"]))

    again, decodings_again = cases(None), decoded.copy()
    once, decodings_once = cases(KEPT_BYTES), decoded.copy()
    assert set(decodings_again.values()) == {3}
    assert set(decodings_once.values()) == {1}
    for a, b in zip(again, once, strict=True):
        assert a.figures() == b.figures()
        for image_id, found in a.evaluation.predictions.items():
            other = b.evaluation.predictions[image_id]
            assert all(
                torch.equal(getattr(found, name), getattr(other, name)) for name in ("boxes", "scores", "classes")
            )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("workers", [0, 1])
def test_commands_decode_once(shapes_config: RunConfig, decoded: Counter[str], tmp_path: Path, workers: int) -> None:
    choices = shapes_config.model_dump() | {"ratios": (0, 50), "workers": workers, "attack": "fgsm"}
    folder = run(make_config(**{**choices, "out": tmp_path / "run"}))
    assert len(decoded) == 8
    assert set(decoded.values()) == {1}
    decoded.clear()
    shared = {name: choices[name] for name in ("weights", "data", "image_size", "width", "threads")}
    stage = EvaluateStage(**shared, model="yolov3-tiny", workers=workers, attack=("fgsm",), out=tmp_path / "figures")
    outcome = evaluate_stage(stage)
    assert set(decoded.values()) == {1}
    row = read_rows(folder.results)[0]
    assert float(row["ap"]) == outcome.cases["none"]["ap"]
    assert float(row["attacked_ap"]) == outcome.cases["fgsm"]["ap"]
