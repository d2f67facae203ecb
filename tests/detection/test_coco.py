from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunekit.detection import CocoDataset, collate
from prunekit.detection.image_files import read_image
from prunekit.errors import InputError
from tests.support.coco_files import Content, small_content, write_coco


def test_categories_become_labels_by_sorted_id(tmp_path: Path) -> None:
    dataset = CocoDataset.open(write_coco(tmp_path, small_content()), image_size=64)
    assert [(category.id, category.name) for category in dataset.categories] == [(2, "bicycle"), (44, "bottle")]
    assert [record.id for record in dataset.images] == [7, 3, 9]
    assert [record.labels.tolist() for record in dataset.images] == [[1], [0], []]
    assert dataset.num_classes == 2
    assert dataset.skipped == []


def test_boxes_become_corners_and_crowds_stay_out_of_training(tmp_path: Path) -> None:
    dataset = CocoDataset.open(write_coco(tmp_path, small_content()), image_size=64)
    assert [record.boxes.tolist() for record in dataset.images] == [[[10, 5, 30, 35]], [[5.5, 10, 9.5, 14.25]], []]
    assert [annotation.is_crowd for annotation in dataset.images[0].annotations] == [False, True]
    assert [annotation.area for annotation in dataset.images[0].annotations] == [500, 900]


def test_samples_and_batches_hold_letterboxed_images_and_boxes(tmp_path: Path) -> None:
    dataset = CocoDataset.open(write_coco(tmp_path, small_content()), image_size=96)
    batch = collate(dataset[index] for index in range(len(dataset)))
    assert batch.images.shape == (3, 3, 96, 96)
    assert batch.images.dtype == torch.float32
    assert batch.image_ids == [7, 3, 9]
    # 60×40 pixels become 96×64 with 16 rows above; 30×50 become 58×96 with 19 columns to the left.
    torch.testing.assert_close(batch.targets[0].boxes, torch.tensor([[16.0, 24, 48, 72]]))
    scale = torch.tensor([58 / 30, 96 / 50, 58 / 30, 96 / 50])
    shifted = torch.tensor([[5.5, 10, 9.5, 14.25]]) * scale + torch.tensor([19.0, 0, 19, 0])
    torch.testing.assert_close(batch.targets[1].boxes, shifted)
    assert batch.targets[2].boxes.shape == (0, 4)
    assert batch.targets[2].labels.shape == (0,)
    for box, letterbox, record in zip(batch.targets, batch.letterboxes, dataset.images, strict=True):
        torch.testing.assert_close(letterbox.to_image(box.boxes), record.boxes)


def test_grayscale_follows_rec_601(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, small_content())
    color = CocoDataset.open(folder, image_size=64)[0].image
    gray = CocoDataset.open(folder, image_size=64, grayscale=True)[0].image
    expected = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    for channel in gray:
        torch.testing.assert_close(channel, expected)


@pytest.mark.parametrize("images", ["train2017", "images", "images/train2017", "."])
def test_images_are_found_beside_the_annotations(images: str, tmp_path: Path) -> None:
    folder = write_coco(tmp_path, small_content(), images)
    for path in (folder, str(folder), folder / "annotations" / "instances_train2017.json"):
        assert len(CocoDataset.open(path, image_size=64)) == 3


def test_splits_with_equal_file_names_are_told_apart_by_the_folders_name(tmp_path: Path) -> None:
    write_coco(tmp_path, small_content(), "a_other")
    write_coco(tmp_path, small_content(), "train2017")
    assert CocoDataset.open(tmp_path, image_size=64).image_folder.name == "train2017"


def test_instances_are_preferred_among_cocos_files(tmp_path: Path) -> None:
    write_coco(tmp_path, small_content())
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    assert len(CocoDataset.open(tmp_path, image_size=64)) == 3
    (tmp_path / "annotations" / "instances_val2017.json").write_text("{}")
    with pytest.raises(InputError, match=r"instances_train2017.json, instances_val2017.json: name one"):
        CocoDataset.open(tmp_path, image_size=64)


def test_the_limit_takes_the_first_images(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, small_content())
    (folder / "train2017" / "c.png").unlink()
    assert [record.id for record in CocoDataset.open(folder, 64, limit=2).images] == [7, 3]
    with pytest.raises(InputError, match="limit of at least 1"):
        CocoDataset.open(folder, 64, limit=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"category_id": 5}, "unknown category 5"),
        ({"image_id": 8}, "unknown image 8"),
        ({"image_id": "8"}, "unknown image '8'"),
        ({"image_id": 7.5}, "unknown image 7.5"),
        ({"image_id": True}, "unknown image True"),
        ({"iscrowd": "perhaps"}, "iscrowd 'perhaps', neither 0 nor 1"),
        ({"bbox": [1, 2, 0, 4]}, "box of 0×4 pixels"),
        ({"bbox": [1, 2, 3, -4]}, "box of 3×-4 pixels"),
        ({"bbox": [60, 2, 3, 4]}, "outside its image"),
        ({"bbox": [1, 2, 3]}, "four finite numbers"),
        ({"bbox": None}, "four finite numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "four finite numbers"),
        ({"bbox": [1, 2, "3", True]}, "four finite numbers"),
        ({"bbox": [1, 2, "3", "wide"]}, "four finite numbers"),
        ({"bbox": [1, 2, 3, 10**400]}, "four finite numbers"),
        ({"bbox": [1, 2, 3, 0.001]}, "box of 3×0.001 pixels"),
        ({"bbox": [-1e308, 2, 1e308, 3]}, "outside its image"),
        ({"bbox": [59.9999, 2, 3, 4]}, "outside its image"),
    ],
)
def test_unusable_annotations_are_skipped_and_listed(change: Content, reason: str, tmp_path: Path) -> None:
    content = small_content()
    content["annotations"][0].update(change)
    dataset = CocoDataset.open(write_coco(tmp_path, content), image_size=64)
    (skip,) = dataset.skipped
    assert skip.what == "annotation 1"
    assert reason in skip.reason
    assert [len(record.annotations) for record in dataset.images] == [1, 1, 0]


def test_boxes_that_leave_the_image_are_clipped(tmp_path: Path) -> None:
    content = small_content()
    content["annotations"][0]["bbox"] = [-5, 30, 100, 30]
    dataset = CocoDataset.open(write_coco(tmp_path, content), image_size=64)
    assert dataset.images[0].boxes.tolist() == [[0, 30, 60, 40]]


@pytest.mark.parametrize("area", [None, 0, -3, "large", float("nan")])
def test_an_area_that_is_missing_or_impossible_is_the_boxs(area: Any, tmp_path: Path) -> None:
    content = small_content()
    content["annotations"][0]["area"] = area
    dataset = CocoDataset.open(write_coco(tmp_path, content), image_size=64)
    assert [annotation.area for annotation in dataset.images[0].annotations] == [20 * 30, 900]


def test_unusable_image_entries_are_skipped_and_listed(tmp_path: Path) -> None:
    content = small_content()
    content["images"][1] = {"id": 3, "file_name": None, "width": 30, "height": 50}
    content["images"].append("not an image")
    write_coco(tmp_path, {**content, "images": [content["images"][0], content["images"][2]]})
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    dataset = CocoDataset.open(tmp_path, image_size=64)
    assert [record.id for record in dataset.images] == [7, 9]
    assert [skip.what for skip in dataset.skipped] == ["image 3", "image at index 3", "annotation 3"]


def without(key: str) -> Content:
    content = small_content()
    del content[key]
    return content


def replaced(key: str, value: Any) -> Content:
    return {**small_content(), key: value}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1, 2]", "JSON object .* found a list"),
        (without("images"), "'images' .* no such key"),
        (without("annotations"), "'annotations' .* no such key"),
        (without("categories"), "'categories' .* no such key"),
        (replaced("categories", {"2": "bicycle"}), "'categories' .* found a dict"),
        (replaced("categories", []), "at least one category"),
        (replaced("categories", [{"id": 2}]), "id and a name per category"),
        (replaced("categories", [{"id": 2, "name": "a"}, {"id": 2, "name": "b"}]), "distinct category ids"),
        (replaced("images", []), "at least one usable image .* among 0"),
        (replaced("images", [small_content()["images"][0]] * 2), "distinct image ids .* 7"),
        (replaced("annotations", []), "found none that can be used"),
        (replaced("annotations", [{"id": 5, "image_id": 1}]), "1 entries were skipped, annotation 5 names the unknown"),
    ],
)
def test_files_without_usable_data_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    folder = write_coco(tmp_path, content)
    with pytest.raises(InputError, match=message) as caught:
        CocoDataset.open(folder, image_size=64)
    assert str(folder) in str(caught.value)


def test_binary_annotation_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(InputError, match="not valid JSON"):
        CocoDataset.open(tmp_path / "a.json")


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        CocoDataset.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="got none of them in"):
        CocoDataset.open(tmp_path)
    folder = write_coco(tmp_path / "data", small_content())
    for file in (folder / "train2017").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"none of the 3, such as a\.png"):
        CocoDataset.open(folder)


@pytest.mark.parametrize("image_size", [0, -32, 100])
def test_image_sizes_that_no_detector_takes_are_refused(image_size: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiples of 32"):
        CocoDataset.open(write_coco(tmp_path, small_content()), image_size)


def test_models_with_other_classes_are_refused(tmp_path: Path) -> None:
    dataset = CocoDataset.open(write_coco(tmp_path, small_content()), image_size=64)
    dataset.require_num_classes(2)
    with pytest.raises(InputError, match=r"2 categories .* 80 classes"):
        dataset.require_num_classes(80)


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scramble(path: Path) -> None:
    path.write_bytes(b"no image at all")


def resize(path: Path) -> None:
    Image.new("RGB", (5, 6)).save(path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(remove, "is missing"), (empty, "cannot be read"), (scramble, "cannot be read"), (resize, "has 5×6 pixels")],
)
def test_bad_images_are_an_error_or_a_listed_skip(damage: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    folder = write_coco(tmp_path, small_content())
    damage(folder / "train2017" / "b.png")
    with pytest.raises(InputError, match=f"b.png {reason}"):
        CocoDataset.open(folder, image_size=64)
    dataset = CocoDataset.open(folder, image_size=64, on_bad_image="skip")
    assert [record.id for record in dataset.images] == [7, 9]
    assert len(dataset.skipped) == 1
    assert reason in dataset.skipped[0].reason


def test_a_data_set_of_bad_images_only_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, small_content())
    for file in (folder / "train2017").iterdir():
        scramble(file)
    with pytest.raises(InputError, match="and 2 more have problems"):
        CocoDataset.open(folder, image_size=64, on_bad_image="skip")


def test_a_truncated_image_is_an_error_when_decoded(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, small_content())
    file = folder / "train2017" / "a.png"
    file.write_bytes(file.read_bytes()[:-2000])
    dataset = CocoDataset.open(folder, image_size=64)
    with pytest.raises(InputError, match=r"complete image, but .*a\.png cannot be decoded"):
        dataset[0]


PIXELS = np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def saved(image: Image.Image, format: str, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file


@pytest.mark.parametrize(
    ("mode", "format"), [("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("CMYK", "TIFF")]
)
def test_every_mode_becomes_rgb(mode: str, format: str, tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    (tmp_path / "image").write_bytes(saved(image, format).getvalue())
    found = read_image(tmp_path / "image", 12, 8)
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.asarray(image.convert("RGB")))


def test_sixteen_bit_gray_is_scaled_to_eight(tmp_path: Path) -> None:
    gray = (np.arange(96, dtype=np.uint16) * 689).reshape(8, 12)
    Image.fromarray(gray).save(tmp_path / "image.png")
    found = np.asarray(read_image(tmp_path / "image.png", 12, 8)).astype(float)
    assert np.abs(found - gray[..., None] / 257).max() <= 1


def test_the_orientation_in_exif_counts_only_where_the_annotated_size_needs_it(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn clockwise
    (tmp_path / "image").write_bytes(saved(image, "PNG", exif=exif).getvalue())
    assert np.array_equal(np.asarray(read_image(tmp_path / "image", 12, 8)), PIXELS)
    assert np.array_equal(np.asarray(read_image(tmp_path / "image", 8, 12)), np.rot90(PIXELS, -1))
