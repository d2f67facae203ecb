"""The deployed detector on a source of frames: reading, letterboxing, network, suppression, drawing, writing.

Four threads work at the same time, with bounded queues in between: one reads, one letterboxes, one runs the network and
suppresses, one draws and writes. A live source does not wait: where frames come faster than the detector works, old
ones give way, and their number is told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from prunekit.detection.boxes import Detections
from prunekit.detection.letterbox import Letterbox, to_grayscale
from prunekit.detection.pictures import LabeledBox, draw_over
from prunekit.detection.task import DetectionTask
from prunekit.errors import InputError
from prunekit.kept_images import Pixels
from prunekit.timing import Timing
from prunekit.video.channels import Channel
from prunekit.video.sources import Frame, Source
from prunekit.video.writing import VideoWriter

T = TypeVar("T")
U = TypeVar("U")
_PATIENCE = 5.0  # seconds


@dataclass(frozen=True)
class WatchOptions:
    """How a video is watched.

    Attributes:
        image_size: Side of the network's input in pixels.
        grayscale: Whether the network sees gray images.
        score_threshold: Boxes with a score above it are drawn.
        iou_threshold: Of suppression.
        max_detections: Boxes a frame, at most.
        max_candidates: Pairs of box and class that enter suppression, at most; None: the detector's own limits.
        max_frames: Frames that are looked at, at most; None: all.
        queue: Frames that may wait before each thread.
    """

    image_size: int
    grayscale: bool = False
    score_threshold: float = 0.3
    iou_threshold: float = 0.45
    max_detections: int = 100
    max_candidates: int | None = None
    max_frames: int | None = None
    queue: int = 2


@dataclass(frozen=True)
class FrameBoxes:
    """What was found in a frame, boxes xyxy in its pixels, and the seconds until it was known."""

    frame: Frame
    found: Detections
    seconds: float


@dataclass(frozen=True)
class Watched:
    """What came of a video.

    Attributes:
        frames: Frames that were looked at.
        dropped: Frames of a live source that gave way to newer ones.
        seconds: From the first frame's arrival to the last one's being written.
        latency: From a frame's arrival to its boxes, waiting for its turn included.
        stages: Of each stage's own work on a frame: letterbox, network, suppression.
        was_interrupted: Whether Ctrl-C ended it.
        trouble: What ended it early, in a sentence; "" for nothing.
    """

    frames: int
    dropped: int
    seconds: float
    latency: Timing
    stages: dict[str, Timing]
    was_interrupted: bool = False
    trouble: str = ""

    @property
    def frames_per_s(self) -> float:
        """The throughput."""
        return self.frames / self.seconds


@dataclass(frozen=True)
class Squared:
    """A frame as the network sees it, [1, 3, S, S], and the way back to its pixels."""

    frame: Frame
    letterbox: Letterbox
    x: Tensor


@dataclass
class _Clock:
    """Seconds by stage; each stage is one thread's."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def timed(self, stage: str, do: Callable[[T], U], item: T) -> U:
        start = time.perf_counter()
        result = do(item)
        self.seconds.setdefault(stage, []).append(time.perf_counter() - start)
        return result


class _Stages:
    """The threads of a pipeline, and what went wrong in them."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def start(self, name: str, items: Iterable[T], do: Callable[[T], U], out: Channel[U] | None = None) -> None:
        """Work on items in a thread, handing results on, until they end, fail, or nobody wants more."""
        thread = threading.Thread(target=self._work, args=(items, do, out), name=f"prunekit {name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait for the threads to end: for the first one, which writes, as long as it takes.

        A stream that stalls may keep the one that reads; it ends with the process.
        """
        for number, thread in enumerate(self._threads):
            thread.join(_PATIENCE if number else None)

    def _work(self, items: Iterable[T], do: Callable[[T], U], out: Channel[U] | None) -> None:
        try:
            for item in items:
                result = do(item)
                if out is not None and not out.put(result):
                    break
        except BaseException as error:
            self.errors.append(error)
        finally:
            if isinstance(items, Channel):
                items.abandon()
            if out is not None:
                out.close()


def watch(
    source: Source,
    model: nn.Module,
    task: DetectionTask,
    options: WatchOptions,
    out: Path | None = None,
    class_names: Sequence[str] = (),
    seen: Callable[[FrameBoxes], object] = lambda boxes: None,
) -> Watched:
    """Run a detector over a source, and write the frames with their boxes.

    Args:
        source: Where frames come from.
        model: What is deployed: maps [1, 3, S, S] to the task's outputs.
        task: What turns outputs into boxes.
        options: Sizes, thresholds and limits.
        out: The video to write; None writes none. What was written when something ends the work early can be played.
        class_names: The labels' names; a label without one is shown as a number.
        seen: Told of each frame's boxes, in the frames' order.

    Returns:
        Frames, times, and what ended the work early.

    Raises:
        InputError: When there was no frame.
    """
    clock, stages, latencies = _Clock(), _Stages(), list[float]()
    read = Channel[Frame](options.queue, drops_oldest=source.is_live)
    squared, drawn = Channel[Squared](options.queue), Channel[FrameBoxes](options.queue)
    is_interrupted, start = False, time.perf_counter()
    with ExitStack() as stack:
        writer = None if out is None else stack.enter_context(VideoWriter(out, source.rate))
        # The last thread first: one that fails closes what is before it.
        stages.start("writing", drawn, lambda boxes: _write(boxes, writer, class_names))
        stages.start(
            "letterboxing",
            read,
            lambda frame: clock.timed("letterbox", partial(square, options=options), frame),
            squared,
        )
        stages.start("reading", islice(source.frames(), options.max_frames), lambda frame: frame, read)
        try:
            for one in squared:
                boxes = _found(one, model, task, options, clock)
                latencies.append(boxes.seconds)
                seen(boxes)
                if not drawn.put(boxes):
                    break
        except KeyboardInterrupt:
            is_interrupted = True
        finally:
            for channel in (read, squared):
                channel.abandon()
            drawn.close()
            stages.join()
    seconds, trouble = time.perf_counter() - start, _trouble(stages.errors)
    if not latencies:
        if out is not None:
            out.unlink(missing_ok=True)
        raise InputError(trouble or "--source: expected at least one frame, got none.")
    timings = {stage: Timing.of(values) for stage, values in clock.seconds.items()}
    return Watched(len(latencies), read.dropped, seconds, Timing.of(latencies), timings, is_interrupted, trouble)


def square(frame: Frame, options: WatchOptions) -> Squared:
    """Return a frame as the network sees it."""
    height, width = frame.pixels.shape[:2]
    letterbox = Letterbox.fit(width, height, options.image_size)
    x = letterbox.apply(frame.pixels)[None]
    return Squared(frame, letterbox, to_grayscale(x) if options.grayscale else x)


@torch.inference_mode()
def _found(one: Squared, model: nn.Module, task: DetectionTask, options: WatchOptions, clock: _Clock) -> FrameBoxes:
    outputs = clock.timed("network", model, one.x)
    (found,) = clock.timed("suppression", lambda outputs: task.detections(outputs, options), outputs)
    boxes = Detections(one.letterbox.to_image(found.boxes), found.scores, found.classes)
    return FrameBoxes(one.frame, boxes, time.perf_counter() - one.frame.arrived)


def _write(boxes: FrameBoxes, writer: VideoWriter | None, names: Sequence[str]) -> None:
    if writer is not None:
        writer.write(with_boxes(boxes.frame.pixels, boxes.found, names))


def with_boxes(pixels: Pixels, found: Detections, names: Sequence[str]) -> Pixels:
    """Return a copy of a picture, uint8 [H, W, 3], with boxes xyxy in its pixels, the best ones on top.

    Args:
        pixels: The picture.
        found: The boxes.
        names: The labels' names; a label without one is shown as a number.
    """
    labeled = [
        LabeledBox((x0, y0, x1, y1), label, names[label] if label < len(names) else str(label), score)
        for (x0, y0, x1, y1), label, score in zip(
            found.boxes.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True
        )
    ]
    canvas = Image.fromarray(pixels)
    draw_over(canvas, labeled[::-1], canvas.width)
    return np.asarray(canvas)


def _trouble(errors: Sequence[BaseException]) -> str:
    """Return the sentence of what a thread failed at; an error that is none of the user's is raised."""
    for error in errors:
        if not isinstance(error, InputError):
            raise error
    return str(errors[0]) if errors else ""
