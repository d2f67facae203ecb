"""COCO data as exporters write it: what is plain is repaired, what is not is counted, and evaluation sees the same."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.mutations import places_of
from prunekit.detection import CocoDataset, Detections, evaluate_detections
from prunekit.errors import InputError
from prunekit.pipeline.choices import SharedChoices
from prunekit.pipeline.results import open_data
from prunekit.progress import SilentProgress
from tests.support.coco_files import Content, small_content, write_coco
from tests.support.training_problems import tiny_task

SIZE = 64


def opened(folder: Path, content: Any, encoding: str = "utf-8", **options: Any) -> CocoDataset:
    """Write the images of the small data set beside this content, and open it."""
    if not (folder / "annotations").exists():
        write_coco(folder, small_content())
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "annotations" / "instances_train2017.json").write_bytes(text.encode(encoding))
    return CocoDataset.open(folder, SIZE, **options)


def facts(dataset: CocoDataset) -> tuple[Any, ...]:
    """Return what the loss and the evaluation go by."""
    return [(r.id, r.width, r.height, r.annotations) for r in dataset.images], dataset.categories


def retyped(change: Callable[[Any], Any]) -> Content:
    """Return the small data set with every number of an id, a size, a box, an area and a flag in another type."""
    content = small_content()
    for entries in content.values():
        for entry in entries:
            for key, value in entry.items():
                if key == "bbox":
                    entry[key] = [change(number) for number in value]
                elif not isinstance(value, str):
                    entry[key] = change(value)
    return content


@pytest.mark.parametrize("change", [str, float, lambda value: f" {float(value)} "])
def test_numbers_in_other_types_are_the_same_data(change: Callable[[Any], Any], tmp_path: Path) -> None:
    expected = facts(CocoDataset.open(write_coco(tmp_path / "a", small_content()), SIZE))
    dataset = opened(tmp_path / "b", retyped(change))
    assert facts(dataset) == expected
    assert dataset.skipped_by_reason == {}


@pytest.mark.parametrize("spelled", [7, 7.0, "7", "7.0", "007", " 7 "])
@pytest.mark.parametrize("referred", [7, 7.0, "7"])
def test_ids_are_equal_however_images_and_annotations_spell_them(spelled: Any, referred: Any, tmp_path: Path) -> None:
    content = small_content()
    content["images"][0]["id"] = spelled
    for annotation in content["annotations"][:2]:
        annotation["image_id"] = referred
    assert [len(record.annotations) for record in opened(tmp_path, content).images] == [2, 1, 0]


def test_ids_that_are_words_get_numbers_of_their_own(tmp_path: Path) -> None:
    content = small_content()
    content["images"][0]["id"] = "street-7a"
    content["annotations"][0]["image_id"] = content["annotations"][1]["image_id"] = "street-7a"
    content["categories"][0]["id"] = content["annotations"][0]["category_id"] = "bottles"
    dataset = opened(tmp_path, content)
    assert [record.id for record in dataset.images] == [10, 3, 9]
    assert [(category.id, category.name) for category in dataset.categories] == [(2, "bicycle"), (3, "bottle")]
    assert [record.labels.tolist() for record in dataset.images] == [[1], [0], []]


@pytest.mark.parametrize("repeated", [7, "7", 7.0])
@pytest.mark.parametrize("kind", ["images", "categories"])
def test_ids_that_collapse_into_one_are_an_error_that_names_them(kind: str, repeated: Any, tmp_path: Path) -> None:
    content = small_content()
    content["images"][2]["id"] = repeated
    content["categories"] += [{"id": 7, "name": "a"}, {"id": repeated if kind == "categories" else 8, "name": "b"}]
    content["images"][2]["id"] = repeated if kind == "images" else 9
    with pytest.raises(InputError, match=rf"Expected distinct {'image' if kind == 'images' else 'category'} ids .*7"):
        opened(tmp_path, content)


@pytest.mark.parametrize("value", [1, 1.0, "1", True, "true", "Yes", "1.0"])
def test_crowds_are_known_however_they_are_marked(value: Any, tmp_path: Path) -> None:
    content = small_content()
    content["annotations"][0]["iscrowd"] = value
    assert [a.is_crowd for a in opened(tmp_path, content).images[0].annotations] == [True, True]


@pytest.mark.parametrize("value", [0, 0.0, "0", False, "false", "No", "", None, "0.0"])
def test_objects_are_known_however_they_are_marked(value: Any, tmp_path: Path) -> None:
    content = small_content()
    content["annotations"][0]["iscrowd"] = value
    assert [a.is_crowd for a in opened(tmp_path, content).images[0].annotations] == [False, True]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_any_of_its_encodings_is_read(encoding: str, tmp_path: Path) -> None:
    content = json.dumps(small_content(), ensure_ascii=False).replace("bottle", "láhev")
    dataset = opened(tmp_path, content, encoding)
    assert [category.name for category in dataset.categories] == ["bicycle", "láhev"]


@pytest.mark.parametrize("prefix", ["train2017\\", ".\\", "C:\\data\\images\\", "/nowhere/images/", "train2017/"])
def test_file_names_with_folders_of_another_machine_are_found(prefix: str, tmp_path: Path) -> None:
    content = small_content()
    for entry in content["images"][: 2 if "\\" in prefix else 3]:
        entry["file_name"] = prefix + entry["file_name"]
    dataset = opened(tmp_path, content)
    assert len(dataset) == 3
    assert all((dataset.image_folder / record.file_name).is_file() for record in dataset.images)


@pytest.mark.parametrize("name", ["x" * 300, "a\x00b", "", 5])
def test_file_names_that_no_file_can_have_are_a_skip_or_an_error(name: Any, tmp_path: Path) -> None:
    content = small_content()
    content["images"][2]["file_name"] = name
    dataset = opened(tmp_path, content, on_bad_image="skip")
    assert [record.id for record in dataset.images] == [7, 3]
    assert sum(dataset.skipped_by_reason.values()) == 1


@pytest.mark.parametrize("size", [{}, {"width": -1, "height": -1}, {"width": None}, {"width": "?", "height": 40}])
def test_sizes_that_are_not_said_come_from_the_image(size: Content, tmp_path: Path) -> None:
    content = small_content()
    for entry in content["images"]:
        del entry["width"], entry["height"]
        entry.update(size)
    expected = facts(CocoDataset.open(write_coco(tmp_path / "a", small_content()), SIZE))
    assert facts(opened(tmp_path / "b", content)) == expected


def test_annotations_that_are_repeated_count_once_and_equal_ids_alone_do_no_harm(tmp_path: Path) -> None:
    content = small_content()
    content["annotations"] += [
        deepcopy(content["annotations"][0]),
        {**content["annotations"][2], "image_id": 7, "id": 1},
    ]
    dataset = opened(tmp_path, content)
    assert [len(record.annotations) for record in dataset.images] == [3, 1, 0]
    assert dataset.skipped_by_reason == {"annotations that repeat an earlier one": 1}


class Lines(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_what_is_skipped_is_counted_by_reason_and_said_in_a_line_each(tmp_path: Path) -> None:
    content = small_content()
    good = content["annotations"][0]
    changes: list[Content] = [{"category_id": 5}, {"category_id": 6}, {"image_id": 8}, {"bbox": [0, 0, -1, 5]}]
    content["annotations"] += [{**good, "id": 10 + index, **change} for index, change in enumerate(changes)]
    content["images"].append({"id": 11, "file_name": None})
    dataset = opened(tmp_path, content)
    assert dataset.skipped_by_reason == {
        "images without a usable id or file_name": 1,
        "annotations that name an unknown category": 2,
        "annotations that name an unknown image": 1,
        "annotations whose box has no extent": 1,
    }
    assert len(dataset.skipped) == 5
    config, progress = SharedChoices.model_validate({"out": tmp_path, "image_size": SIZE}), Lines()
    open_data(config, tiny_task(2, 1.0), tmp_path, progress)
    lines = progress.lines
    assert len(lines) == 4
    assert lines[1] == (
        "skipped 2 annotations that name an unknown category: annotation 10 names the unknown category 5 …"
    )


def test_the_limit_leaves_objects_of_other_images_out_without_a_word(tmp_path: Path) -> None:
    content = small_content()
    content["images"].reverse()
    dataset = opened(tmp_path, content, limit=1)
    assert [(record.id, record.annotations) for record in dataset.images] == [(9, [])]
    assert dataset.skipped == []


@pytest.mark.parametrize("first_id", [1, 2**53, 2**63, "a"])
def test_perfect_detections_of_repaired_data_have_an_average_precision_of_one(first_id: Any, tmp_path: Path) -> None:
    content = small_content()
    del content["annotations"][2]["bbox"]
    content["annotations"][2]["segmentation"] = [[5, 10, 15, 10, 15, 20, 5, 20]]
    ids = {7: first_id, 3: first_id + 1 if isinstance(first_id, int) else "b", 9: str(first_id) + "2"}
    for entry in content["images"]:
        entry["id"] = ids[entry["id"]]
    for entry in content["annotations"]:
        entry["image_id"] = ids[entry["image_id"]]
    dataset = opened(tmp_path, content)
    found = {
        record.id: Detections(record.boxes, torch.ones(len(record.boxes)), record.labels)
        for record in dataset.images
        if len(record.boxes)
    }
    result = evaluate_detections(dataset, found)
    assert result.ap == pytest.approx(1, abs=1e-12)  # pycocotools adds the smallest float to a denominator


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400) | st.just("1e999"),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["id", "size", "counts"]), inner),
    max_leaves=6,
)


def rich_content() -> Content:
    """Return the small data set with outlines of every kind."""
    content = small_content()
    del content["annotations"][0]["bbox"], content["annotations"][1]["area"], content["annotations"][2]["bbox"]
    content["annotations"][0]["segmentation"] = [[4, 4, 24, 4, 24, 16, 4, 16]]
    content["annotations"][1]["segmentation"] = {"size": [40, 60], "counts": [100, 300]}
    content["annotations"][2]["segmentation"] = {"size": [50, 30], "counts": "T4<d000"}
    return content


@settings(deadline=None, max_examples=int(os.environ.get("PRUNEKIT_FILES", "60")))
@given(data=st.data(), count=st.integers(1, 3))
def test_any_change_of_any_field_ends_in_boxes_in_range_or_one_sentence(
    data: st.DataObject, count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = rich_content()
    for _ in range(count):
        places = list(places_of(content))
        if not places:
            break
        container, key = places[data.draw(st.integers(0, len(places) - 1))]
        if data.draw(st.booleans()):
            container[key] = data.draw(VALUES)
        else:
            del container[key]
    try:
        dataset = opened(tmp_path_factory.getbasetemp() / "changed", content, on_bad_image="skip")
    except InputError as error:
        assert str(error).count("\n") == 0  # noqa: PT017 - either is right
        return
    total = sum(isinstance(entry, dict) for entry in content["annotations"])
    assert sum(len(record.annotations) for record in dataset.images) <= total
    assert sum(dataset.skipped_by_reason.values()) == len(dataset.skipped)
    for index, record in enumerate(dataset.images):
        for annotation in record.annotations:
            x1, y1, x2, y2 = annotation.box
            assert 0 <= x1 < x2 <= record.width
            assert 0 <= y1 < y2 <= record.height
            assert 0 < annotation.area < math.inf
        sample = dataset[index]
        assert bool((sample.boxes[:, :2] < sample.boxes[:, 2:]).all())
    evaluate_detections(dataset, {})
