"""`prunekit evaluate --corruptions`: what images the model sees, resuming, tables, pictures and what is refused."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunekit.classification import resnet20
from prunekit.classification.data import ClassificationData
from prunekit.detection import CocoDataset
from prunekit.detection.image_files import read_image
from prunekit.errors import InputError
from prunekit.evaluation.corruptions import Cell, corrupt, parse_corruptions
from prunekit.evaluation.corruptions.catalog import CorruptPixels
from prunekit.evaluation.corruptions.summary import require_corruptible
from prunekit.evaluation.evaluate import evaluate
from prunekit.kept_images import KEPT_BYTES, KeptImages, KeptPixels
from prunekit.pipeline.checkpoint import save_model
from prunekit.task import ModelSpec
from prunekit.training.data import load_batches
from tests.support.classes_of_images import write_classes
from tests.support.coco_files import small_content, write_coco
from tests.support.commands import Options, invoke, results, succeed

pytestmark = pytest.mark.usefixtures("one_thread")

FOG = Cell("fog", 3)


class Stopped(Exception):
    """What ends the process."""


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of three classes, 20×20 pixels."""
    return write_classes(tmp_path_factory.mktemp("classes") / "data", ("blue", "green", "red"), 2, size=20)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that has learned nothing."""
    path = tmp_path_factory.mktemp("net") / "model.safetensors"
    arguments: dict[str, Any] = {"num_classes": 3, "width": 0.25, "small_images": True}
    torch.manual_seed(0)
    save_model(path, resnet20(**arguments).eval(), ModelSpec("resnet20", arguments))
    return path


def options(weights: Path, classes: Path, out: Path, **more: Any) -> Options:
    return {"weights": weights, "data": classes, "out": out, "attack": "none", "threads": 1, "batch-size": 4, **more}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often this process has decoded each image file, by name."""
    counter: Counter[str] = Counter()

    def counting(path: Path, *arguments: Any) -> Any:
        counter[f"{path.parent.name}/{path.name}"] += 1
        return read_image(path, *arguments)

    for module in ("prunekit.detection.coco", "prunekit.classification.sources"):
        monkeypatch.setattr(f"{module}.read_image", counting)
    return counter


def corrupted_files(folder: Path, paths: list[tuple[Path, int]], cell: Cell, seed: int) -> None:
    """Write corrupted copies of images, of the ids that go with them, into a folder of the same layout."""
    for path, image_id in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        target = folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(corrupt(pixels, *cell, image_id=image_id, seed=seed)).save(target)


@pytest.mark.parametrize("cell", [FOG, Cell("pixelate", 5), Cell("gaussian_noise", 1)])
@pytest.mark.parametrize("grayscale", [False, True])
def test_a_detector_sees_what_it_would_in_corrupted_files(tmp_path: Path, cell: Cell, grayscale: bool) -> None:
    clean = CocoDataset.open(write_coco(tmp_path / "clean", small_content()), 32, grayscale)
    write_coco(tmp_path / "corrupt", small_content())
    paths = [(clean.image_folder / record.file_name, record.id) for record in clean.images]
    corrupted_files(tmp_path / "corrupt" / "train2017", paths, cell, seed=4)
    expected = CocoDataset.open(tmp_path / "corrupt", 32, grayscale)
    for kept in (None, KeptPixels()):
        clean.decoded = kept
        found = clean.changed(CorruptPixels(cell, 4))
        for index in range(3):
            assert torch.equal(found[index].image, expected[index].image)
            assert torch.equal(found[index].boxes, expected[index].boxes)
            assert not torch.equal(found[index].image, clean[index].image)


@pytest.mark.parametrize("image_size", [None, 12])
def test_a_classifier_sees_them_before_they_are_resized(classes: Path, tmp_path: Path, image_size: int | None) -> None:
    data = ClassificationData.open(classes, image_size)
    found = data.changed(CorruptPixels(FOG, 2))
    names = [data.example(index)["file_name"] for index in range(6)]
    for name in sorted({name.partition("/")[0] for name in names}):
        own = [(classes / other, key) for key, other in enumerate(names) if other.startswith(f"{name}/")]
        corrupted_files(tmp_path / name, own, FOG, seed=2)
    expected = ClassificationData.open(tmp_path, image_size)
    for index in range(6):
        assert torch.equal(found[index].image, expected[index].image)
        assert found[index].target == expected[index].target


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_what_is_kept_change_nothing(tmp_path: Path, workers: int) -> None:
    data = CocoDataset.open(write_coco(tmp_path, small_content()), 32)
    expected = [sample.image for sample in map(data.changed(CorruptPixels(FOG)).__getitem__, range(3))]
    data.kept, data.decoded = KeptImages(), KeptPixels()
    clean = [data[index].image for index in range(3)]
    (batch,) = load_batches(data.changed(CorruptPixels(FOG)), 3, workers)
    assert torch.equal(batch.images, torch.stack(expected))
    assert torch.equal(torch.stack([data[index].image for index in range(3)]), torch.stack(clean))


def test_pixels_are_kept_as_far_as_they_fit() -> None:
    first, second = (np.full((4, 5, 3), value, np.uint8) for value in (1, 2))
    kept = KeptPixels(first.nbytes + second.nbytes - 1)
    assert kept.get(1, lambda: first) is first or kept.bytes_used == first.nbytes
    assert kept.get(1, lambda: second).tolist() == first.tolist()
    assert kept.get(2, lambda: second).tolist() == second.tolist()
    assert kept.get(2, lambda: first).tolist() == first.tolist()  # did not fit
    assert kept.bytes_used == first.nbytes <= KEPT_BYTES
    with pytest.raises(ValueError, match="read-only"):
        kept.get(1, lambda: second)[0] = 0
    first[0] = 9  # what was decoded is the caller's


def test_cells_are_tabled_drawn_and_told(weights: Path, classes: Path, tmp_path: Path, decoded: Counter[str]) -> None:
    result = succeed("evaluate", options(weights, classes, tmp_path / "out", corruptions="fog,snow:3,contrast:5"))
    assert set(decoded.values()) == {1}  # of clean images and seven cells
    rows = list(csv.DictReader((tmp_path / "out/corruptions.csv").open()))
    cells = [("none", "0"), *((name, str(severity)) for name, severity in parse_corruptions("fog,snow:3,contrast:5"))]
    assert [(row["corruption"], row["severity"]) for row in rows] == cells
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    summary = found["corruptions"]
    assert summary["by_cell"] == {f"{row['corruption']}-{row['severity']}": float(row["accuracy"]) for row in rows[1:]}
    assert summary["clean"] == found["cases"]["none"]["accuracy"] == float(rows[0]["accuracy"])
    assert summary["cells"] == 7
    assert "mce" not in summary
    for row in rows:
        about = (row["model"], row["images"], row["image_size"], row["seed"], row["data_sha256"])
        assert about == ("resnet20", "6", "20", "0", found["data_sha256"])
    shown = " ".join(result.stdout.split())
    assert "over 7 cells, not the 75 of the benchmark" in shown
    assert "mCE is relative to another classifier's errors: --corruption-baseline" in shown
    with Image.open(tmp_path / "out/corruption-examples.png") as picture:
        assert picture.width > 2 * 200  # clean, snow and fog: severity 3 alone
    assert (tmp_path / "out/corruptions.png").read_bytes()[:4] == b"\x89PNG"
    assert {path.parent.name for path in (tmp_path / "out").rglob("example.png")} == {"clean", "fog-3", "snow-3"}


def test_figures_are_those_of_corrupted_files(weights: Path, classes: Path, tmp_path: Path) -> None:
    cell = Cell("contrast", 5)
    data = ClassificationData.open(classes)
    for key in range(6):
        path = classes / data.example(key)["file_name"]
        corrupted_files(tmp_path / "files" / path.parent.name, [(path, key)], cell, seed=0)
    succeed("evaluate", options(weights, classes, tmp_path / "cells", corruptions="contrast:5"))
    succeed("evaluate", options(weights, tmp_path / "files", tmp_path / "clean"))
    found = json.loads((tmp_path / "cells/evaluation.json").read_text())["corruptions"]["by_cell"]
    expected = json.loads((tmp_path / "clean/evaluation.json").read_text())["cases"]["none"]
    assert found == {"contrast-5": expected["accuracy"]}


def test_a_stopped_evaluation_goes_on_with_the_next_cell(
    weights: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"corruptions": "fog,shot_noise,glass_blur:3"}
    succeed("evaluate", options(weights, classes, tmp_path / "whole", **asked))
    cells, limits = list[str](), [4]

    def stopping(subject: Any, attack: None, description: str) -> Any:
        if limits and len(cells) == limits[0]:
            raise Stopped
        cells.append(description)
        return evaluate(subject, attack, description)

    monkeypatch.setattr("prunekit.pipeline.corruptions.evaluate", stopping)
    again = options(weights, classes, tmp_path / "resumed", **asked)
    assert isinstance(invoke("evaluate", again).exception, Stopped | SystemExit)
    (tmp_path / "resumed/corruptions/fog-2/done.json").unlink()  # as one killed a moment earlier leaves it
    del cells[:], limits[0]
    result = succeed("evaluate", again)
    assert cells == ["fog-2", "fog-5", *(f"shot_noise-{severity}" for severity in range(1, 6)), "glass_blur-3"]
    assert "corruptions: 3 of 11 cells finished earlier" in " ".join(result.stderr.split())
    assert results(tmp_path / "resumed") == results(tmp_path / "whole")
    del cells[:]
    assert "Finished earlier" in succeed("evaluate", again).stdout
    assert cells == []


def test_more_cells_can_be_asked_for_in_the_same_folder(weights: Path, classes: Path, tmp_path: Path) -> None:
    for asked in ("fog:3", "fog:3,snow:1"):
        succeed("evaluate", options(weights, classes, tmp_path / "out", corruptions=asked))
    found = json.loads((tmp_path / "out/evaluation.json").read_text())["corruptions"]
    assert [*found["by_cell"]] == ["fog-3", "snow-1"]


def test_errors_are_relative_to_another_evaluations(weights: Path, classes: Path, tmp_path: Path) -> None:
    asked = options(weights, classes, tmp_path / "first", corruptions="fog,saturate:2")
    succeed("evaluate", asked)
    table = tmp_path / "first/corruptions.csv"
    found = succeed("evaluate", asked | {"out": tmp_path / "second", "corruption-baseline": table})
    assert "of 6 cells, which is not mCE, relative to the baseline: 100.0%" in " ".join(found.stdout.split())
    published = tmp_path / "published.csv"
    published.write_text("corruption,severity,accuracy\n" + "".join(f"fog,{one},0.5\n" for one in range(1, 6)))
    succeed("evaluate", asked | {"corruptions": "fog", "out": tmp_path / "third", "corruption-baseline": published})
    figures = json.loads((tmp_path / "third/evaluation.json").read_text())["corruptions"]
    assert figures["mean_corruption_error"] == pytest.approx((5 - sum(figures["by_cell"].values())) / 2.5)


BAD_BASELINES = {
    "fog,1,0.5\n": "got no such row",
    "".join(f"fog,{severity},1.5\n" for severity in range(1, 6)): "got '1.5'",
    "".join(f"fog,{severity},good\n" for severity in range(1, 6)): "got 'good'",
    "".join(f"fog,{severity},\n" for severity in range(1, 6)): "got ''",
    "".join(
        f"fog,{severity},0.5,0123\n" for severity in range(1, 6)
    ): "figures on the same images at the same size, got others",
}


@pytest.mark.parametrize(("rows", "sentence"), BAD_BASELINES.items())
def test_bad_baselines_are_one_sentence(weights: Path, classes: Path, tmp_path: Path, rows: str, sentence: str) -> None:
    path = tmp_path / "baseline.csv"
    path.write_text(f"corruption,severity,accuracy,data_sha256\n{rows}")
    asked = options(weights, classes, tmp_path / "out", corruptions="fog", **{"corruption-baseline": path})
    result = invoke("evaluate", asked)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "Error: --corruption-baseline: expected" in said
    assert sentence in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"corruptions": "smog"},
            "--corruptions: expected corruptions among benchmark, validation, all, gaussian_noise",
        ),
        ({"corruptions": "fog:7"}, "--corruptions: expected a severity from 1 to 5 for fog, got 7."),
        ({"corruption-baseline": "x.csv"}, "--corruption-baseline is for mCE of --corruptions: add --corruptions."),
        ({"corruptions": "fog", "corruption-baseline": "x.csv"}, "x.csv cannot be read."),
    ],
)
def test_bad_options_are_one_sentence(
    weights: Path, classes: Path, tmp_path: Path, asked: Options, sentence: str
) -> None:
    result = invoke("evaluate", options(weights, classes, tmp_path / "out", **asked))
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_detector_has_no_mce(tmp_path: Path) -> None:
    (tmp_path / "net.weights").write_bytes(bytes(64))
    asked = options(tmp_path / "net.weights", tmp_path, tmp_path / "out", corruptions="fog", model="yolov3-tiny")
    result = invoke("evaluate", asked | {"corruption-baseline": tmp_path / "x.csv"})
    assert result.exit_code == 2
    assert "--corruption-baseline: expected a classifier, got yolov3-tiny." in " ".join(result.stderr.split())


def test_data_that_cannot_be_changed_are_refused() -> None:
    data: Any = [1, 2]
    with pytest.raises(InputError, match="--corruptions: expected data whose images can be changed"):
        require_corruptible(data)


def test_a_trained_detector_loses_and_its_table_says_how_much(
    shapes_weights: Path, shapes_data: Path, tmp_path: Path
) -> None:
    asked: Options = {
        "model": "yolov3-tiny", "width": 0.125, "weights": shapes_weights, "data": shapes_data, "image-size": 96,
        "attack": "none", "corruptions": "contrast,gaussian_noise:5", "threads": 1, "out": tmp_path / "out",
    }  # fmt: skip
    result = succeed("evaluate", asked)
    found = json.loads((tmp_path / "out/evaluation.json").read_text())["corruptions"]
    assert found["clean"] > 0.5
    assert found["by_cell"]["contrast-5"] < found["by_cell"]["contrast-1"] <= found["clean"]
    assert f"Corruptions: AP {found['clean']:.3f} clean, mean {found['mean']:.3f} over 6 cells" in result.stdout
