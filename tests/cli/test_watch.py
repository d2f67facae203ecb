"""`prunekit watch`: boxes that follow the objects, a video that can be played, and every way in which it can end."""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunekit.demo import shipped
from prunekit.detection import CocoDataset, DetectionTask, render_shapes_dataset, yolov3_tiny
from prunekit.detection.boxes import intersection_and_union
from prunekit.detection.coco_json import ImageRecord
from prunekit.errors import InputError
from prunekit.kept_images import Pixels
from prunekit.video import Channel, Frame, FrameBoxes, WatchOptions, open_source, watch
from prunekit.video.writing import VideoWriter
from tests.support.commands import invoke, succeed

av = pytest.importorskip("av", reason="needs PyAV: pip install 'prunekit[video]'")
pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = WatchOptions(image_size=64, score_threshold=0.001)


def frames_of(path: Path) -> list[Pixels]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def write_clip(path: Path, pictures: list[Pixels], rate: int = 10) -> Path:
    with VideoWriter(path, Fraction(rate)) as writer:
        for picture in pictures:
            writer.write(picture)
    return path


def noise(count: int, height: int = 48, width: int = 64) -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (height, width, 3)).astype(np.uint8) for _ in range(count)]


def moved(pixels: Pixels, by: int) -> Pixels:
    """Return an image that has moved to the right by some pixels, its left edge repeated."""
    return np.concatenate([np.repeat(pixels[:, :1], by, axis=1), pixels[:, : pixels.shape[1] - by]], axis=1)


class Live:
    """A camera that shows a frame every few milliseconds, whether or not anybody looks."""

    is_live, rate = True, Fraction(25)

    def __init__(self, count: int) -> None:
        self.count = count

    def frames(self) -> Iterator[Frame]:
        for number in range(self.count):
            time.sleep(0.002)
            yield Frame(number, noise(1)[0], time.perf_counter())


class Failing(Live):
    """A file that is damaged after two frames."""

    is_live = False

    def frames(self) -> Iterator[Frame]:
        yield from super().frames()
        raise InputError("--source: expected a whole video, but it is damaged after frame 1.")


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return yolov3_tiny(3, width=0.05).eval()


def task(net: torch.nn.Module) -> DetectionTask:
    from prunekit.detection import Detector

    assert isinstance(net, Detector)
    return DetectionTask.of(net, width=0.05)


def test_a_channel_gives_items_in_order_and_holds_no_more_than_its_size() -> None:
    channel, put = Channel[int](2), list[int]()

    def fill() -> None:
        for number in range(10):
            channel.put(number)
            put.append(number)
        channel.close()

    thread = threading.Thread(target=fill)
    thread.start()
    time.sleep(0.05)
    assert len(put) == 2
    assert [*channel] == [*range(10)]
    thread.join()
    assert channel.dropped == 0


def test_a_channel_that_drops_keeps_the_newest() -> None:
    channel = Channel[int](2, drops_oldest=True)
    assert all(channel.put(number) for number in range(7))
    channel.close()
    assert [*channel] == [5, 6]
    assert channel.dropped == 5


def test_nobody_waits_for_a_channel_that_was_abandoned() -> None:
    channel = Channel[int](1)
    assert channel.put(0)
    threading.Timer(0.02, channel.abandon).start()
    assert not channel.put(1)
    assert [*channel] == []


@pytest.mark.parametrize("size", [(48, 64), (49, 63)])
def test_what_was_written_can_be_played(tmp_path: Path, size: tuple[int, int]) -> None:
    flat = [np.full((*size, 3), value, np.uint8) for value in (40, 120, 200)]
    path = write_clip(tmp_path / "new" / "clip.mp4", [*flat, np.full((20, 30, 3), 80, np.uint8)])
    played = frames_of(path)
    assert [picture.shape for picture in played] == [(48, size[1] - size[1] % 2, 3)] * 4
    assert [round(float(picture.mean())) for picture in played] == pytest.approx([40, 120, 200, 80], abs=4)
    assert open_source(str(path)).rate == 10


def overlaps(boxes_csv: Path, record: ImageRecord, names: Sequence[str], shifts: Sequence[int]) -> list[float]:
    """Return for each object of each frame its IoU with the nearest box of its class; objects end at the edge."""
    with boxes_csv.open() as file:
        rows = [*csv.DictReader(file)]
    found = []
    for number, by in enumerate(shifts):
        truth = (record.boxes + torch.tensor([by, 0, by, 0])).clamp(max=float(max(record.height, record.width)))
        of_frame = [row for row in rows if row["frame"] == str(number)]
        for box, label in zip(truth, record.labels.tolist(), strict=True):
            boxes = torch.tensor(
                [[float(row[edge]) for edge in ("x1", "y1", "x2", "y2")] for row in of_frame
                 if row["class"] == names[label]]
            ).reshape(-1, 4)  # fmt: skip
            shared, covered = intersection_and_union(boxes, box)
            found.append(max((shared / covered).tolist(), default=0.0))
    return found


def test_boxes_follow_the_objects_of_a_rendered_clip(shapes_data: Path, shapes_weights: Path, tmp_path: Path) -> None:
    """A scene that the detector knows by heart moves to the right, a pixel in two frames."""
    dataset = CocoDataset.open(shapes_data, 96)
    record = next(record for record in dataset.images if len(record.boxes) >= 2)
    scene = np.asarray(Image.open(dataset.image_folder / record.file_name).convert("RGB"))
    shifts = [number // 2 for number in range(8)]
    clip = write_clip(tmp_path / "clip.mp4", [moved(scene, by) for by in shifts])
    asked = {
        "weights": shapes_weights, "model": "yolov3-tiny", "width": 0.125, "data": shapes_data, "source": clip,
        "image-size": 96, "threads": 1, "score-threshold": 0.1, "out": tmp_path / "out.mp4",
        "boxes": tmp_path / "boxes.csv",
    }  # fmt: skip
    result = succeed("watch", asked)
    assert "8 frames in" in result.stdout
    assert "From frame to boxes: median" in result.stdout
    assert float(np.mean(overlaps(tmp_path / "boxes.csv", record, dataset.class_names, shifts))) > 0.6
    played = frames_of(tmp_path / "out.mp4")
    assert len(played) == 8
    assert np.abs(played[0].astype(int) - frames_of(clip)[0]).max() > 60  # boxes were drawn


@pytest.mark.slow
def test_the_demos_detector_follows_objects_that_it_has_never_seen(tmp_path: Path) -> None:
    """300 frames of a scene that goes 20 pixels to the right and back, a pixel in two frames."""
    data = tmp_path / "data"
    render_shapes_dataset(data, 8, shipped.IMAGE_SIZE, seed=12345, style=shipped.STYLE)
    dataset = CocoDataset.open(data, shipped.IMAGE_SIZE)
    record = max(dataset.images, key=lambda record: len(record.boxes))
    scene = np.asarray(Image.open(dataset.image_folder / record.file_name).convert("RGB"))
    shifts = [20 - abs(number // 2 % 40 - 20) for number in range(300)]
    clip = write_clip(tmp_path / "clip.mp4", [moved(scene, by) for by in shifts], rate=25)
    shipped.unpack(tmp_path / shipped.WEIGHTS)
    asked = {
        "weights": tmp_path / shipped.WEIGHTS, "data": data, "source": clip, "image-size": shipped.IMAGE_SIZE,
        "threads": 1, "score-threshold": 0.1, "boxes": tmp_path / "boxes.csv", "out": tmp_path / "out.mp4",
    }  # fmt: skip
    result = succeed("watch", asked)
    assert "300 frames in" in result.stdout
    found = overlaps(tmp_path / "boxes.csv", record, dataset.class_names, shifts)
    assert len(found) == 300 * len(record.boxes) >= 900
    assert float(np.mean(found)) > 0.6
    assert len(frames_of(tmp_path / "out.mp4")) == 300


def test_boxes_are_those_of_each_frame_alone(net: torch.nn.Module, tmp_path: Path) -> None:
    for number, picture in enumerate(noise(5)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    seen: list[FrameBoxes] = []
    found = watch(open_source(str(tmp_path)), net, task(net), OPTIONS, seen=seen.append)
    assert [one.frame.number for one in seen] == [*range(5)]
    assert (found.frames, found.dropped, found.trouble) == (5, 0, "")
    for one, picture in zip(seen, noise(5), strict=True):
        assert np.array_equal(one.frame.pixels, picture)
        alone: list[FrameBoxes] = []
        watch(Still(picture), net, task(net), OPTIONS, seen=alone.append)
        assert torch.equal(one.found.boxes, alone[0].found.boxes)
    assert {*found.stages} == {"letterbox", "network", "suppression"}
    assert found.latency.median_ms >= found.stages["network"].median_ms


class Still(Live):
    """One frame."""

    is_live = False

    def __init__(self, picture: Pixels) -> None:
        self.picture = picture

    def frames(self) -> Iterator[Frame]:
        yield Frame(0, self.picture, time.perf_counter())


def test_a_live_source_drops_old_frames_and_says_how_many(net: torch.nn.Module) -> None:
    seen: list[int] = []

    def slow(one: FrameBoxes) -> None:
        seen.append(one.frame.number)
        time.sleep(0.03)

    found = watch(Live(40), net, task(net), OPTIONS, seen=slow)
    assert found.frames == len(seen)
    assert found.frames + found.dropped == 40
    assert found.dropped > 0
    assert seen == sorted(seen)
    assert seen[-1] == 39


def test_ctrl_c_leaves_a_video_that_can_be_played(net: torch.nn.Module, tmp_path: Path) -> None:
    def stop(one: FrameBoxes) -> None:
        if one.frame.number == 3:
            raise KeyboardInterrupt

    found = watch(Failing(500), net, task(net), OPTIONS, tmp_path / "out.mp4", seen=stop)
    assert found.was_interrupted
    assert 3 <= len(frames_of(tmp_path / "out.mp4")) <= 4


def test_a_damaged_source_ends_in_a_sentence_and_a_video_of_what_was_read(net: torch.nn.Module, tmp_path: Path) -> None:
    found = watch(Failing(2), net, task(net), OPTIONS, tmp_path / "out.mp4")
    assert found.trouble == "--source: expected a whole video, but it is damaged after frame 1."
    assert len(frames_of(tmp_path / "out.mp4")) == 2


def test_a_clip_that_was_cut_off_ends_in_a_sentence(trained: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mpg", noise(30))
    whole = clip.read_bytes()
    clip.write_bytes(whole[: len(whole) // 2] + b"\x00" * 64)
    asked = {"weights": trained, "source": clip, "image-size": 64, "out": tmp_path / "out.mp4", "dense": True}
    assert invoke("watch", asked).exit_code in (0, 2)  # FFmpeg reads what there is, or says that it cannot
    assert 0 < len(frames_of(tmp_path / "out.mp4")) < 30


def test_no_source_at_all_is_not_the_folder_one_is_in() -> None:
    with pytest.raises(InputError, match="but '' is none"):
        open_source("")


def test_the_number_of_frames_can_be_limited(net: torch.nn.Module, tmp_path: Path) -> None:
    source = open_source(str(write_clip(tmp_path / "clip.mp4", noise(6))))
    options = WatchOptions(image_size=64, max_frames=2, grayscale=True)
    assert watch(source, net, task(net), options).frames == 2


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("absent.mp4", None, "expected a video file, a folder of images or camera:0"),
        ("empty.mp4", b"", "is empty."),
        ("damaged.mp4", b"no video at all" * 50, "cannot be opened"),
        ("camera:99", None, "expected a camera"),
        ("", None, "expected images"),
    ],
)
def test_what_is_no_video_is_told_in_one_sentence(
    trained: Path, tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    source = name if name.startswith("camera") else tmp_path / name
    result = invoke("watch", {"weights": trained, "source": source, "out": tmp_path / "out.mp4"})
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: --source: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out.mp4").exists()


def test_options_that_make_no_sense_are_refused(trained: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", noise(1))
    for wrong, sentence in {
        "frames": "--frames: expected a whole number of at least 1, got 0",
        "threads": "--threads: expected a whole number from 1",
        "image-size": "--image-size: expected a number of pixels",
        "max-candidates": "max_candidates",
    }.items():
        result = invoke("watch", {"weights": trained, "source": clip, wrong: 0})
        assert result.exit_code == 2
        assert sentence in result.stderr


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, trained: Path, tmp_path: Path) -> None:
    from prunekit import extras

    clip = write_clip(tmp_path / "clip.mp4", noise(1))
    monkeypatch.setitem(extras.EXTRAS, "video", ("no_such_package",))
    result = invoke("watch", {"weights": trained, "source": clip})
    assert result.exit_code == 2
    assert "pip install 'prunekit[video]'" in result.stderr


def test_an_error_of_the_program_is_no_sentence(net: torch.nn.Module) -> None:
    class Broken(Live):
        is_live = False

        def frames(self) -> Iterator[Any]:
            yield Frame(0, noise(1)[0], 0.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        watch(Broken(1), net, task(net), OPTIONS)
