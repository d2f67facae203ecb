"""`prunekit watch`: a detector on video, with its boxes and how long they take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.ending import EXIT_INTERRUPTED, Verbose, error_console, tell, user_errors
from prunekit.cli.options import option_help
from prunekit.console import ConsoleProgress
from prunekit.detection.task import DetectionTask
from prunekit.environment import thread_count
from prunekit.errors import InputError
from prunekit.evaluation.evaluate import EvaluationConfig
from prunekit.files import csv_text, write_text
from prunekit.nn import accelerate
from prunekit.pipeline.checkpoint import example_image, find_checkpoint, requested_spec
from prunekit.pipeline.config import architectures, wrong_image_size
from prunekit.pipeline.own_models import model_arguments, name_own_model
from prunekit.task import load_plugin
from prunekit.task_data import NamesClasses
from prunekit.video import FrameBoxes, Watched, WatchOptions, open_source, watch
from prunekit.video.sources import require_video

WATCH_EXAMPLES = """
Examples:

  prunekit watch --weights runs/finetuned/model.safetensors --source clip.mp4 --out boxes.mp4

  prunekit watch --weights yolov3-tiny.weights --model yolov3-tiny --data coco128/ --source camera:0 --frames 500
      --out camera.mp4 --boxes camera.csv

Ctrl-C ends it; what was written until then can be played.
"""

_COLUMNS = ("frame", "x1", "y1", "x2", "y2", "score", "class")


def watch_command(
    weights: Annotated[Path, typer.Option(help="model: .safetensors file, folder of a command, or darknet weights")],
    source: Annotated[
        str, typer.Option(help="video file, folder of images in the order of their names, camera:0, or a stream's URL")
    ],
    out: Annotated[Path | None, typer.Option(help="video to write, such as out.mp4 (default: none)")] = None,
    boxes: Annotated[Path | None, typer.Option(help="CSV file for the boxes of every frame (default: none)")] = None,
    model: Annotated[str | None, typer.Option(help=f"of a file that does not say it: {architectures()}")] = None,
    model_args: Annotated[list[str] | None, typer.Option(help=option_help("model_args"))] = None,
    task: Annotated[str | None, typer.Option(help=option_help("task"))] = None,
    width: Annotated[float | None, typer.Option(help="width multiplier of a darknet file")] = None,
    data: Annotated[Path | None, typer.Option(help="data set whose classes name the boxes (default: numbers)")] = None,
    image_size: Annotated[int | None, typer.Option(help="side of the input in pixels (default: the model's)")] = None,
    grayscale: Annotated[bool, typer.Option("--grayscale", help=option_help("grayscale"))] = False,
    score_threshold: Annotated[float, typer.Option(help="draw detections with a score above this")] = 0.3,
    iou_threshold: Annotated[float, typer.Option(help="IoU threshold of non-maximum suppression")] = 0.45,
    max_detections: Annotated[int, typer.Option(help="maximum detections per frame")] = 100,
    max_candidates: Annotated[
        int | None, typer.Option(help=str(EvaluationConfig.model_fields["max_candidates"].description))
    ] = None,
    frames: Annotated[int | None, typer.Option(help="stop after N frames (default: all)")] = None,
    dense: Annotated[bool, typer.Option("--dense", help="run the model as it is, not accelerated")] = False,
    threads: Annotated[int | None, typer.Option(help="number of torch threads (default: torch's choice)")] = None,
    plugin: Annotated[list[str] | None, typer.Option(help="module of yours that registers the model")] = None,
    verbose: Verbose = False,
) -> None:
    """Run a detector on video: its boxes, the latency from a frame to them, frames a second, and frames dropped."""
    with user_errors(verbose):
        for module in plugin or ():
            load_plugin(module)
        name_own_model(model, task, model_args or ())
        _check(out, frames, threads, image_size)
        limits = EvaluationConfig(
            score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections,
            max_candidates=max_candidates,
        )  # fmt: skip
        opened = open_source(source)
        spec = None if model is None else requested_spec(model, width, arguments=model_arguments(model_args or ()))
        detector = find_checkpoint(weights, None, spec)
        if not isinstance(detector.task, DetectionTask):
            raise InputError(f"--weights: expected a detector, got the model {detector.task.spec.name}.")
        size = detector.task.image_size if image_size is None else image_size
        if wrong := wrong_image_size(size, detector.task):
            raise InputError(f"{wrong}.")
        options = WatchOptions(
            size, grayscale, limits.score_threshold, limits.iou_threshold, limits.max_detections,
            limits.max_candidates, frames,
        )  # fmt: skip
        names = _class_names(detector.task, data, size)
        rows: list[list[object]] = []
        with thread_count(threads):
            with ConsoleProgress(error_console) as progress:
                for _ in progress.track(range(1), "accelerating", 1):
                    deployed = detector.model if dense else accelerate(detector.model, example_image(size))
            found = watch(
                opened, deployed, detector.task, options, out, names, lambda one: rows.extend(_rows(one, names))
            )
        if boxes is not None:
            write_text(boxes, csv_text(_COLUMNS, rows))
        _tell(found, [file for file in (out, boxes) if file is not None])
        if found.trouble:
            raise InputError(found.trouble)
    if found.was_interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def _check(out: Path | None, frames: int | None, threads: int | None, image_size: int | None) -> None:
    if out is not None:
        require_video()
        if out.is_dir():
            raise InputError(f"--out: expected a file to write, got a folder: {out}.")
    if frames is not None and frames < 1:
        raise InputError(f"--frames: expected a whole number of at least 1, got {frames}.")
    if threads is not None and not 1 <= threads <= 1024:
        raise InputError(f"--threads: expected a whole number from 1 to 1024, got {threads}.")
    if image_size is not None and not 1 <= image_size <= 4096:
        raise InputError(f"--image-size: expected a number of pixels up to 4096, got {image_size}.")


def _class_names(task: DetectionTask, data: Path | None, image_size: int) -> list[str]:
    """Return the names of a data set's classes, or the numbers of the model's."""
    count = int(task.spec.arguments.get("num_classes", 0))
    if data is None:
        return [str(label) for label in range(count)]
    dataset = task.open_data(data, image_size, False, 1)
    names = [*dataset.class_names] if isinstance(dataset, NamesClasses) else []
    if count and len(names) != count:
        raise InputError(f"--data: expected the names of {count} classes, got {len(names)} in {data}.")
    return names


def _rows(one: FrameBoxes, names: list[str]) -> list[list[object]]:
    """Return a frame's detections, the best first: frame, corners in its pixels, score, class."""
    found = one.found
    return [
        [one.frame.number, *(f"{coordinate:.2f}" for coordinate in box), f"{score:.6f}", names[label]]
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    ]


def _tell(found: Watched, files: list[Path]) -> None:
    stages = ", ".join(f"{name} {timing.median_ms:.1f} ms" for name, timing in found.stages.items())
    dropped = f", {found.dropped} dropped" if found.dropped else ""
    tell(f"{found.frames} frames{dropped} in {found.seconds:.1f} s: {found.frames_per_s:.1f} a second")
    tell(f"From frame to boxes: median {found.latency.median_ms:.1f} ms, p99 {found.latency.p99_ms:.1f} ms ({stages})")
    if found.was_interrupted:
        tell("Interrupted. What was written until then can be played.")
    for file in files:
        tell(f"Written: {file}")
