"""Textured scenes: the same everywhere, objects that stay visible, shadows and twigs where they belong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from prunekit.detection import CocoDataset, render_shapes_dataset
from prunekit.detection.shape_objects import MIN_VISIBLE, SceneObject
from prunekit.detection.textured import TEXTURED_SHAPES, _darken, _occlude, render_textured_scene
from prunekit.errors import InputError

# Of the pixels of six scenes of 128 pixels. Another value here means other images for everybody, and that what is
# written about detectors trained on them no longer holds.
DIGEST = "9760571f51733b8bcf5794e4aa25405f896258c22b7a2565b6dec076dd7771b1"
SCENES = range(40)


def _scene(seed: int, size: int = 96) -> tuple[np.ndarray, list[SceneObject]]:
    return render_textured_scene(np.random.default_rng(seed), size)


def test_the_same_seeds_give_the_same_pixels_on_every_machine() -> None:
    digest = hashlib.sha256(b"".join(_scene(seed, 128)[0].tobytes() for seed in range(6)))
    assert digest.hexdigest() == DIGEST


def test_objects_stay_visible_share_no_pixels_and_are_of_all_classes() -> None:
    labels, occluded = [], 0
    for seed in SCENES:
        pixels, objects = _scene(seed)
        shown = np.zeros(pixels.shape[:2], dtype=int)
        for placed in objects:
            labels.append(placed.label)
            shown += placed.visible
            assert placed.visible_fraction() >= MIN_VISIBLE
            occluded += placed.visible_fraction() < 1
        assert shown.max(initial=0) <= 1
    assert set(labels) == set(range(len(TEXTURED_SHAPES)))
    assert occluded > 10


def test_pictures_are_no_flat_areas() -> None:
    levels = [len(np.unique(_scene(seed)[0].reshape(-1, 3), axis=0)) for seed in range(10)]
    assert min(levels) > 1000


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 2), (-3, 2), (2, -1), (-1, -4)])
def test_a_shadow_lies_where_the_moved_shape_would(down: int, right: int) -> None:
    shape = np.zeros((12, 10), dtype=bool)
    shape[4:8, 4:6] = True
    canvas = np.full((3, 12, 10), 100, dtype=np.float32)
    _darken(canvas, shape, down, right, 0.5)
    expected = np.where(np.roll(shape, (down, right), (0, 1)), 50, 100)
    assert (canvas == expected).all()


def test_twigs_take_their_pixels_from_the_objects_below() -> None:
    taken = 0
    for seed in range(10):
        disc = SceneObject(0, np.ones((40, 40), dtype=bool), 1600)
        canvas = np.zeros((3, 40, 40), dtype=np.float32)
        _occlude(np.random.default_rng(seed), canvas, [disc])
        assert (disc.visible == (canvas == 0).all(axis=0)).all()
        taken += 1600 - int(disc.visible.sum())
    assert taken > 100


def test_a_twig_that_hides_too_much_is_left_out() -> None:
    for seed in range(10):
        visible = np.random.default_rng(seed).random((40, 40)) < 0.5  # already below what has to show
        canvas = np.zeros((3, 40, 40), dtype=np.float32)
        _occlude(np.random.default_rng(seed), canvas, [SceneObject(0, visible, 1600)])
        assert not canvas.any()


def test_a_data_set_has_the_classes_of_its_style(tmp_path: Path) -> None:
    path = render_shapes_dataset(tmp_path, 4, 64, style="textured")
    names = [category["name"] for category in json.loads(path.read_text())["categories"]]
    assert names == list(TEXTURED_SHAPES)
    assert CocoDataset.open(tmp_path, 64).num_classes == len(TEXTURED_SHAPES)


def test_an_unknown_style_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"style to be one of flat, textured, got 'oil'"):
        render_shapes_dataset(tmp_path, 4, 64, style="oil")
    assert not [*tmp_path.iterdir()]
