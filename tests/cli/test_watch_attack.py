"""`prunekit watch --attack`: one perturbation over a clip, which detections survive it, and what is refused."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from prunekit import documents
from prunekit.detection import CocoDataset, DetectionTask
from prunekit.kept_images import Pixels
from prunekit.task import ModelSpec
from prunekit.video import Frame, WatchOptions
from prunekit.video.held import FrameSurvival, Held, Survival, shares, visible, watch_held
from prunekit.video.watching import square
from tests.support.commands import Options, invoke, succeed

pytestmark = pytest.mark.usefixtures("one_thread")

#: The objects of a scene move by a pixel a frame.
COUNT, COMPUTED_ON = 10, 4


@pytest.fixture(scope="module")
def clip(shapes_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of frames: a scene that the detector knows by heart moves to the right."""
    dataset = CocoDataset.open(shapes_data, 96)
    record = next(record for record in dataset.images if len(record.boxes) >= 2)
    scene = np.asarray(Image.open(dataset.image_folder / record.file_name).convert("RGB"))
    folder = tmp_path_factory.mktemp("clip")
    for by in range(COUNT):
        edge = np.repeat(scene[:, :1], by, axis=1)
        moved = np.concatenate([edge, scene[:, : scene.shape[1] - by]], axis=1)
        Image.fromarray(moved).save(folder / f"{by:02d}.png")
    return folder


@pytest.fixture
def asked(shapes_data: Path, shapes_weights: Path, clip: Path) -> Options:
    return {
        "weights": shapes_weights, "model": "yolov3-tiny", "width": 0.125, "data": shapes_data, "source": clip,
        "image-size": 96, "threads": 1, "attack": "paper", "attack-frames": COMPUTED_ON, "dense": True,
    }  # fmt: skip


def test_a_held_perturbation_takes_more_than_a_random_one(asked: Options, tmp_path: Path) -> None:
    result = succeed("watch", asked | {"report": tmp_path / "held"})
    found = json.loads((tmp_path / "held" / "held.json").read_text())
    assert (found["frames"], found["computed_on"], found["attack"]) == (COUNT, COMPUTED_ON, "paper")
    assert found["later"]["held"] < 0.5 < found["later"]["random"]
    with (tmp_path / "held" / "frames.csv").open() as file:
        rows = [{name: int(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["frame"] for row in rows] == [*range(COUNT)]
    later = rows[COMPUTED_ON:]
    assert found["later"]["held"] == sum(row["held"] for row in later) / sum(row["clean"] for row in later)
    assert f"{found['later']['held']:.1%} survive the perturbation" in result.stdout
    delta = documents.read(tmp_path / "held" / "perturbation.safetensors", "perturbations").tensors["held"]
    assert 0.04 < float(delta.abs().max()) <= 0.05 + 1e-6
    page = (tmp_path / "held" / "held.html").read_text()
    assert page.count("data:image/png") == 4
    assert f"<td>{100 * found['later']['held']:.1f} %</td>" in page


def test_nothing_in_the_first_frames_is_a_sentence(asked: Options) -> None:
    result = invoke("watch", asked | {"score-threshold": 0.9999})
    assert result.exit_code == 2
    assert f"expected detections in the first {COMPUTED_ON} frames to attack, got none" in result.stderr


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"attack": "strong"}, "--attack: expected a preset of PGD, such as paper, for a whole clip, got 'strong'"),
        ({"attack": "none"}, "the attack"),
        ({"attack-frames": 0}, "--attack-frames: expected a whole number of at least 1, got 0"),
        ({"attack": None, "report": "held"}, "--report: expected with --attack"),
        ({"boxes": "boxes.csv"}, "--boxes: expected without --attack"),
        ({"checkpoint": "runs"}, "--checkpoint: expected with a file of prunekit.save as --weights"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: Options, wrong: Options, sentence: str) -> None:
    result = invoke("watch", asked | wrong)
    assert result.exit_code == 2
    assert sentence in result.stderr


class Still:
    """Frames that are all alike."""

    is_live, rate = False, Fraction(10)

    def __init__(self, count: int, height: int = 20, width: int = 40) -> None:
        self.pixels: Pixels = np.full((height, width, 3), 128, np.uint8)
        self.count = count

    def frames(self) -> Iterator[Frame]:
        for number in range(self.count):
            yield Frame(number, self.pixels, time.perf_counter())


class FindsLight(nn.Module):
    """Outputs of a yolov3-tiny of one class that finds an object in a cell of 32 pixels where it is light."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        light = nn.functional.avg_pool2d(x.mean(dim=1, keepdim=True), 32)  # [N, 1, H/32, W/32]
        logits = torch.zeros(len(x), 3, 6, *light.shape[2:])
        logits[:, 0, 4:] = 40 * (light - 0.4)
        logits[:, 1:, 4] = -40
        return logits.flatten(1, 2), torch.full((len(x), 18, light.shape[2] * 2, light.shape[3] * 2), -40.0)


def of_light(darker: float, count: int = 3, **more: Any) -> Survival:
    """Watch gray frames, in two of whose four cells something is found, under a shadow."""
    task = DetectionTask(ModelSpec("yolov3-tiny", {"num_classes": 1}))
    options = WatchOptions(image_size=64, iou_threshold=0.9, **more)
    shadow = torch.zeros(1, 3, 64, 64)
    shadow[..., :32] = -darker
    return watch_held(Still(count, 40, 40), FindsLight(), task, options, Held(shadow, 0 * shadow), 1)


def test_what_is_still_found_is_counted_frame_by_frame() -> None:
    found = of_light(0.3)
    assert [*found.frames] == [FrameSurvival(number, 4, 4, 2, 0) for number in range(3)]
    assert shares(found.later) == {"random": 1.0, "held": 0.5, "clean_per_frame": 4.0, "invented_per_frame": 0.0}
    assert found.example is not None
    assert found.example.clean.shape == (64, 64, 3)
    assert [*of_light(0.0).frames] == [FrameSurvival(number, 4, 4, 4, 0) for number in range(3)]


def test_the_number_of_frames_can_be_limited() -> None:
    assert len(of_light(0.3, count=9, max_frames=2).frames) == 2


def test_shares_of_nothing_are_none() -> None:
    assert shares([FrameSurvival(0, 0, 0, 0, 3)])["held"] is None
    assert shares([])["invented_per_frame"] is None
    assert "–" in Survival(0, [FrameSurvival(0, 0, 0, 0, 3)], None).sentence()


def test_the_border_is_not_perturbed() -> None:
    frame = next(iter(Still(1).frames()))
    where = visible(square(frame, WatchOptions(image_size=64)))
    assert where[0, 0].any(dim=1).nonzero().flatten().tolist() == [*range(16, 48)]
    assert bool(where[0, 0, 16:48].all())


def test_ctrl_c_keeps_what_was_seen() -> None:
    def stop(frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            if frame.number == 2:
                raise KeyboardInterrupt
            yield frame

    task = DetectionTask(ModelSpec("yolov3-tiny", {"num_classes": 1}))
    nothing = torch.zeros(1, 3, 64, 64)
    found = watch_held(
        Still(5), FindsLight(), task, WatchOptions(image_size=64), Held(nothing, nothing), 1, follow=stop
    )
    assert found.was_interrupted
    assert len(found.frames) == 2
