"""The rendered data set is deterministic, valid COCO, and shows what its annotations say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from prunekit.detection import CocoDataset, render_shapes_dataset
from prunekit.detection.shape_objects import MIN_VISIBLE, SHAPES, shape_patch
from prunekit.detection.shapes import render_scene
from prunekit.errors import InputError


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    render_shapes_dataset(folder, num_images=60, image_size=128, seed=3)
    return folder


@pytest.fixture(scope="module")
def content(data: Path) -> Any:
    return json.loads((data / "annotations" / "instances_train.json").read_text())


def test_the_same_arguments_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    render_shapes_dataset(tmp_path, num_images=60, image_size=128, seed=3)
    assert _hashes(tmp_path) == _hashes(data)


def test_a_shorter_data_set_is_the_start_of_a_longer_one(data: Path, tmp_path: Path) -> None:
    render_shapes_dataset(tmp_path, num_images=5, image_size=128, seed=3)
    images = {name: value for name, value in _hashes(tmp_path).items() if name.endswith(".jpg")}
    assert len(images) == 5
    assert images.items() <= _hashes(data).items()


@pytest.mark.parametrize("other", [{"seed": 4}, {"split": "val"}])
def test_another_seed_or_split_gives_other_images(data: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    render_shapes_dataset(tmp_path, num_images=5, image_size=128, **({"seed": 3} | other))
    seen = set(_hashes(data).values())
    assert not any(value in seen for name, value in _hashes(tmp_path).items() if name.endswith(".jpg"))


def test_pycocotools_and_the_own_reader_accept_it(data: Path, content: Any, capsys: pytest.CaptureFixture[str]) -> None:
    coco = COCO(str(data / "annotations" / "instances_train.json"))
    assert len(coco.getAnnIds()) == len(content["annotations"])
    dataset = CocoDataset.open(data, 128)
    assert (len(dataset), dataset.skipped) == (60, [])
    assert sum(len(record.boxes) for record in dataset.images) == len(content["annotations"])


def test_images_have_the_sizes_that_the_json_says(data: Path, content: Any) -> None:
    for record in content["images"]:
        with Image.open(data / "train" / record["file_name"]) as image:
            assert image.size == (record["width"], record["height"])
    assert {max(record["width"], record["height"]) for record in content["images"]} == {128}
    assert len({(record["width"], record["height"]) for record in content["images"]}) > 2


def test_boxes_lie_in_their_images_and_hold_their_areas(content: Any) -> None:
    images = {record["id"]: record for record in content["images"]}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        image = images[annotation["image_id"]]
        assert x >= 0 <= y
        assert 0 < width <= image["width"] - x
        assert 0 < height <= image["height"] - y
        assert 0 < annotation["area"] <= width * height


def test_scenes_vary(content: Any) -> None:
    labels = [annotation["category_id"] for annotation in content["annotations"]]
    counts = np.bincount(labels)[1:]
    assert len(counts) == len(SHAPES)
    assert counts.min() > 0.3 * counts.mean()
    sides = [max(annotation["bbox"][2:]) for annotation in content["annotations"]]
    assert min(sides) < 0.15 * 128
    assert max(sides) > 0.5 * 128


def test_objects_stay_visible_and_do_not_share_pixels() -> None:
    occluded = 0
    for seed in range(40):
        pixels, objects = render_scene(np.random.default_rng(seed), 96)
        shown = np.zeros(pixels.shape[:2], dtype=int)
        for scene_object in objects:
            assert scene_object.visible_fraction() >= MIN_VISIBLE
            shown += scene_object.visible
            occluded += scene_object.visible_fraction() < 1
        assert shown.max() <= 1
    assert occluded > 10


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_covers_what_geometry_says(name: str) -> None:
    # Areas relative to the square around the circle of radius 1, by hand.
    arm = (1 - 0.32**2) ** 0.5
    expected = {
        "circle": np.pi,
        "ring": np.pi * (1 - 0.55**2),
        "square": 2.0,
        "triangle": 3 * 3**0.5 / 4,
        "star": 10 * 0.5 * 0.42 * np.sin(np.pi / 5),
        "cross": 2 * (2 * 0.32 * 2 * arm) - (2 * 0.32) ** 2,
    }
    for angle in (0.0, 0.7, 2.0):
        patch = shape_patch(name, 200, angle)
        assert patch.sum() == pytest.approx(expected[name] * 100**2, rel=0.03)


@pytest.mark.parametrize(("num_images", "image_size"), [(0, 96), (3, 63)])
def test_impossible_sizes_are_refused(tmp_path: Path, num_images: int, image_size: int) -> None:
    with pytest.raises(InputError, match="at least"):
        render_shapes_dataset(tmp_path, num_images, image_size)
