"""Data in YOLO's and Pascal VOC's layouts become the same boxes that COCO's JSON would give, or one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from prunekit import cli
from prunekit.detection import CocoDataset, write_coco_json
from prunekit.errors import InputError
from tests.support.commands import Options, invoke, succeed
from tests.support.external_files import coco128

SIZE = (40, 20)  # width, height
NAMES = "names: [cat, dog]\n"


def picture(path: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(len(str(path.name))).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def write_yolo(
    root: Path, labels: Mapping[str, str | None], yaml: str = f"{NAMES}train: images/train\nval: images/val\n"
) -> Path:
    """Write a set with an image for each label file, "val/a": its text; None for an image without one."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(yaml)
    for name, text in labels.items():
        picture(root / "images" / f"{name}.jpg")
        if text is not None:
            file = root / "labels" / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return root


LABELS = {"val/a": "1 0.5 0.5 0.5 0.5\n0 0.25 0.5 0.25 0.5\n", "val/b": "", "val/c": None, "train/d": "0 .5 .5 1 1"}


def boxes(data: CocoDataset, index: int = 0) -> list[list[float]]:
    return [
        [*map(round, box), label]
        for box, label in zip(data.images[index].boxes.tolist(), data.images[index].labels.tolist(), strict=True)
    ]


def test_yolos_shares_become_pixels_and_images_without_labels_have_no_objects(tmp_path: Path) -> None:
    data = CocoDataset.open(write_yolo(tmp_path, LABELS))
    assert [record.file_name for record in data.images] == [f"images/val/{name}.jpg" for name in "abc"]
    assert boxes(data) == [[10, 5, 30, 15, 1], [5, 5, 15, 15, 0]]
    assert [len(record.boxes) for record in data.images] == [2, 0, 0]
    assert [category.name for category in data.categories] == ["cat", "dog"]
    assert (data.split, data.splits) == ("val", ("val", "train"))
    assert boxes(data.training()) == [[0, 0, 40, 20, 0]]
    assert data.training().training().split == "train"
    assert data.part(1).notes() == []


@pytest.mark.parametrize("named", ["train", "data.yaml", "split"])
def test_a_split_can_be_named(named: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "set", LABELS)
    path = {"train": root / "train", "data.yaml": root / "data.yaml", "split": root}[named]
    data = CocoDataset.open(path, split="train" if named != "train" else None)
    assert [record.file_name for record in data.images] == ["images/train/d.jpg"]
    with pytest.raises(InputError, match=r"one of the splits val, train of .*, got 'test'"):
        CocoDataset.open(root, split="test")


def test_a_folder_of_images_and_labels_for_each_split(tmp_path: Path) -> None:
    """As some exporters write it, with paths that lead one folder too far up."""
    (tmp_path / "data.yaml").write_text(f"{NAMES}nc: 2\ntrain: ../train/images\nval: ../valid/images\n")
    for split in ("train", "valid"):
        picture(tmp_path / split / "images" / "x.y.jpg")
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / "x.y.txt").write_text("1 0.5 0.5 0.5 0.5")
    assert boxes(CocoDataset.open(tmp_path)) == [[10, 5, 30, 15, 1]]
    assert CocoDataset.open(tmp_path / "train").images[0].file_name == "train/images/x.y.jpg"


def test_names_by_id_lists_of_files_and_several_folders(tmp_path: Path) -> None:
    yaml = (
        "path: elsewhere/of/another/machine\nnames: {3: cat, 7: dog}\ntrain: [images/train, images/val]\nval: val.txt\n"
    )
    root = write_yolo(tmp_path / "set", {"val/a": "7 0.5 0.5 0.5 0.5", "val/b": "3.0 0.5 0.5 1 1", "train/d": ""}, yaml)
    (root / "val.txt").write_text(f"./images/val/b.jpg\n\n{root}/images/val/a.jpg\n")
    data = CocoDataset.open(root)
    assert [record.file_name for record in data.images] == ["images/val/b.jpg", "images/val/a.jpg"]
    assert [boxes(data, 0), boxes(data, 1)] == [[[0, 0, 40, 20, 0]], [[10, 5, 30, 15, 1]]]
    assert [category.id for category in data.categories] == [3, 7]
    assert len(data.training()) == 3
    assert len(CocoDataset.open(root, limit=1)) == 1


def test_labels_beside_images_and_images_elsewhere(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "elsewhere" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.yaml").write_text(f"{NAMES}val: {tmp_path}/elsewhere\n")
    data = CocoDataset.open(tmp_path / "set")
    assert data.images[0].file_name == str(tmp_path / "elsewhere" / "a.jpg")
    assert boxes(data) == [[10, 5, 30, 15, 0]]


def test_the_box_of_an_outline(tmp_path: Path) -> None:
    data = CocoDataset.open(write_yolo(tmp_path, {"val/a": "1 0.1 0.2 0.5 1.001 0.3 0.5"}, f"{NAMES}val: images/val\n"))
    assert boxes(data) == [[4, 4, 20, 20, 1]]
    assert data.training() is data


def test_shares_are_of_the_displayed_image(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"val/a": "0 0.5 0.25 1 0.5"})
    picture(root / "images/val/a.jpg", orientation=6)  # 20×40 when displayed
    data = CocoDataset.open(root, split="val")
    assert (data.images[0].width, data.images[0].height, data.images[0].upright) == (20, 40, True)
    assert boxes(data) == [[0, 0, 20, 20, 0]]


def test_what_is_skipped_is_counted(tmp_path: Path) -> None:
    lines = ["0 0.5 0.5 0.5 0.5", "0 0.5 0.5 0.5 0.5", "1 0.5 0.5 0 0.5", "1 0.5 0.5 0 0.25"]
    data = CocoDataset.open(write_yolo(tmp_path, {"val/a": "\n".join(lines)}))
    assert data.skipped_by_reason == {
        "annotations that repeat an earlier one": 1,
        "annotations whose box has no extent": 2,
    }
    assert f"line 2 of {tmp_path}/labels/val/a.txt repeats an earlier line" in data.notes()[0]
    assert "annotation a.txt line 3 has a box of 0×10 pixels" in data.notes()[1]


BAD_LINES = {
    "2 0.5 0.5 0.5 0.5": "a class from 0 to 1, got 2 in ",
    "0.5 0.5 0.5 0.5 0.5": "a class from 0 to 1, got 0.5 in ",
    "-1 0.5 0.5 0.5 0.5": "a class from 0 to 1, got -1 in ",
    "cat 0.5 0.5 0.5 0.5": "numbers, got 'cat' in ",
    "0 0.5 nan 0.5 0.5": "numbers, got 'nan' in ",
    "0 20 10 20 10": "shares of the image, from 0 to 1, got 20 in ",
    "0 0.5 0.5 0.5": "a box of 4 numbers, or an outline's x y …, got 4 in ",
    "0 0.5 0.5 0.5 0.5 0.9": "a box of 4 numbers, or an outline's x y …, got 6 in ",
    "0": "a box of 4 numbers, or an outline's x y …, got 1 in ",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_wrong_line_is_one_sentence_with_file_and_line(line: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"val/a": f"0 0.5 0.5 0.5 0.5\n{line}\n"})
    with pytest.raises(InputError) as caught:
        CocoDataset.open(root)
    assert BAD_LINES[line] in str(caught.value)
    assert str(caught.value).endswith(f"{root}/labels/val/a.txt, line 2.")


BAD_YAML = {
    "val: images/val\n": "the classes' names, .* under names in .*, got none",
    "names: {cat: 0}\nval: images/val\n": "whole numbers from 0 as the ids of names in .*, got 'cat'",
    f"{NAMES}nc: 3\nval: images/val\n": r"each of the 3 classes \(nc\) in .*, got 2",
    NAMES: "images under train, val or test in .*, got none",
    f"{NAMES}val: images/nowhere\n": "images under val of .*, got none at images/nowhere",
    f"{NAMES}val: labels/val\n": "images under val of .*, got none in labels/val",
    f"{NAMES}val: list.txt\n": r"an image for each line of .*list\.txt, got none at gone\.jpg \(line 2\)",
    "names: [cat\nval: images\n": r"data\.yaml is no YAML \(line 2\)",
    "- cat\n": "names, train and val in .*, got list",
}


@pytest.mark.parametrize("yaml", BAD_YAML)
def test_a_wrong_description_is_one_sentence(yaml: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path, {"val/a": "0 0.5 0.5 0.5 0.5"}, yaml)
    (root / "list.txt").write_text("images/val/a.jpg\ngone.jpg\n")
    with pytest.raises(InputError, match=f"^Expected .*{BAD_YAML[yaml]}"):
        CocoDataset.open(root)


def voc_object(name: str, *corners: object, difficult: int = 0) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def write_voc(root: Path, objects: Mapping[str, str], splits: Mapping[str, str]) -> Path:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, text in objects.items():
        picture(root / "JPEGImages" / f"{name}.jpg")
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>old.png</filename>{size}{text}</annotation>"
        )
    for split, names in splits.items():
        (root / "ImageSets/Main" / f"{split}.txt").write_text(names)
    return root


VOC = {
    "a": voc_object("dog", 11, 6, 30, 15) + voc_object("cat", 1, 1, 40, 20, difficult=1),
    "b": voc_object("emu", 1, 1, 2, 2),
}


def test_vocs_pixels_count_from_one_and_difficult_objects_are_crowds(tmp_path: Path) -> None:
    data = CocoDataset.open(write_voc(tmp_path, VOC, {"val": "a\n", "train": "b  1\n", "trainval": "a\nb\n"}))
    assert [category.name for category in data.categories] == ["cat", "dog", "emu"]
    assert [record.file_name for record in data.images] == ["JPEGImages/a.jpg"]
    assert boxes(data) == [[10, 5, 30, 15, 1]]
    assert [(annotation.label, annotation.is_crowd) for annotation in data.images[0].annotations] == [
        (1, False),
        (0, True),
    ]
    assert data.training().split == "train"
    assert boxes(data.training()) == [[0, 0, 2, 2, 2]]
    assert len(CocoDataset.open(tmp_path / "trainval")) == 2


def test_voc_learns_from_trainval_where_test_evaluates_and_needs_no_lists(tmp_path: Path) -> None:
    lists = {"test": "a\n", "train": "b\n", "trainval": "b\n"}
    data = CocoDataset.open(write_voc(tmp_path / "lists", VOC, lists))
    assert (data.split, data.training().split) == ("test", "trainval")
    alone = CocoDataset.open(write_voc(tmp_path / "alone", VOC, {}))
    assert (len(alone), alone.splits) == (2, ())
    assert alone.training() is alone


def test_vocs_unusable_objects_are_counted(tmp_path: Path) -> None:
    bad = voc_object("dog", 1, 1, 5) + voc_object("dog", "x", 1, 5, 5) + voc_object("", 1, 1, 5, 5)
    data = CocoDataset.open(write_voc(tmp_path, {"a": VOC["a"] + bad}, {}))
    assert data.skipped_by_reason == {
        "annotations without a usable bbox or segmentation": 2,
        "annotations that name an unknown category": 1,
    }
    assert "annotation a.xml object 3 has no bbox" in data.notes()[0]


def _no_xml(root: Path) -> None:
    (root / "Annotations/b.xml").unlink()


def _no_images(root: Path) -> None:
    for path in (root / "JPEGImages").iterdir():
        path.unlink()


def _one_image_less(root: Path) -> None:
    (root / "JPEGImages/a.jpg").unlink()


def _damaged(root: Path) -> None:
    (root / "Annotations/a.xml").write_text("<annotation><object>")


def _empty_list(root: Path) -> None:
    (root / "ImageSets/Main/val.txt").write_text("\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_no_xml, r"Annotations/b\.xml in .* for .*val\.txt, got no such file"),
        (_no_images, "images in .*JPEGImages, got none"),
        (_one_image_less, r"every image of the data set to be readable, but .*old\.png is missing"),
        (_damaged, r"an annotation in XML, but .*a\.xml is damaged \(no element found: line 1, column 20\)"),
        (_empty_list, r"the name of an image in each line of .*val\.txt, got none"),
    ],
)
def test_what_voc_lacks_is_one_sentence(spoil: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    root = write_voc(tmp_path, VOC, {"val": "a\nb\n"})
    spoil(root)
    with pytest.raises(InputError, match=f"^Expected .*{words}"):
        CocoDataset.open(root)


@pytest.mark.parametrize("out", ["set/annotations/val.json", "set/val.json", "elsewhere/val.json"])
def test_converting_gives_the_same_data(out: str, tmp_path: Path) -> None:
    data = CocoDataset.open(write_yolo(tmp_path / "set", LABELS))
    assert write_coco_json(data, tmp_path / out) == 2
    again = CocoDataset.open(tmp_path / out)
    assert [len(record.boxes) for record in again.images] == [2, 0, 0]
    for index in range(len(data)):
        assert torch.allclose(again.images[index].boxes, data.images[index].boxes)
        assert torch.equal(again[index].image, data[index].image)
    assert again.categories == data.categories
    names = [entry["file_name"] for entry in json.loads((tmp_path / out).read_text())["images"]]
    assert names[0] == ("images/val/a.jpg" if out.startswith("set") else f"{tmp_path}/set/images/val/a.jpg")


def test_the_command_says_what_it_wrote_and_what_it_left_out(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "set", LABELS | {"train/e": "0 0.5 0.5 0 0\n1 0.5 0.5 1 1"})
    options: Options = {"split": "train", "out": tmp_path / "train.json"}
    result = invoke("convert", options, str(root))
    assert result.exit_code == 0, result.stderr
    assert "skipped 1 annotations whose box has no extent: annotation e.txt line 1 has a box of 0×0" in result.stdout
    assert "Split: train (of val, train)" in result.stdout
    assert "train.json (2 images, 2 boxes, 2 classes)" in result.stdout
    for arguments, words in (
        ([str(root), "--out", str(tmp_path / "x.txt")], "--out: expected a .json file"),
        ([str(tmp_path / "nothing"), "--out", str(tmp_path / "x.json")], "nothing does not exist"),
        (
            [os.devnull, "--out", str(tmp_path / "x.json")],
            f"Expected a folder, a JSON file (COCO) or a data.yaml (YOLO), but {os.devnull} is none",
        ),
        ([str(tmp_path), "--out", str(tmp_path / "x.json")], "got none of them in"),
    ):
        result = CliRunner().invoke(cli.app, ["convert", *arguments])
        assert result.exit_code == 2
        assert words in " ".join(result.stderr.split())


@pytest.mark.usefixtures("one_thread")
def test_commands_read_yolos_folder_and_learn_from_its_training_split(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "set", LABELS)
    shared: Options = {"data": root, "image-size": 64, "threads": 1}
    brief = {"model": "yolov3-tiny", "width": 0.05, "objective": "clean", "max-steps": 1, "train-batch-size": 1}
    succeed("train", shared | brief | {"out": tmp_path / "net"})
    weights = {"weights": tmp_path / "net/model.safetensors", "attack": "none", "out": tmp_path / "figures"}
    succeed("evaluate", shared | weights)
    found = json.loads((tmp_path / "figures/evaluation.json").read_text())
    assert (found["images"], found["num_classes"]) == (3, 2)


def test_coco128_written_as_yolo_has_the_same_boxes(tmp_path: Path) -> None:
    data = CocoDataset.open(coco128(), limit=20)
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").symlink_to(data.image_folder)
    for record in data.images:
        lines = []
        for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
            shares = (
                (x1 + x2) / 2 / record.width,
                (y1 + y2) / 2 / record.height,
                (x2 - x1) / record.width,
                (y2 - y1) / record.height,
            )
            lines.append(" ".join([str(label), *(f"{share:.6f}" for share in shares)]))
        (tmp_path / "labels" / f"{Path(record.file_name).stem}.txt").write_text("\n".join(dict.fromkeys(lines)))
    names = [category.name for category in data.categories]
    (tmp_path / "data.yaml").write_text(json.dumps({"names": names, "val": "images"}))
    again = {record.file_name: record for record in CocoDataset.open(tmp_path).images}
    for record in data.images:
        assert torch.allclose(again[f"images/{record.file_name}"].boxes, record.boxes, atol=0.01)
        assert torch.equal(again[f"images/{record.file_name}"].labels, record.labels)
