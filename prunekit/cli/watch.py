"""`prunekit watch`: a detector on video, with its boxes and how long they take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from prunekit.cli.ending import EXIT_INTERRUPTED, Verbose, error_console, tell, user_errors
from prunekit.cli.options import option_help
from prunekit.cli.watch_attack import AttackedModel, require_clip, watch_under_attack
from prunekit.console import ConsoleProgress
from prunekit.detection.task import DetectionTask
from prunekit.environment import thread_count
from prunekit.errors import InputError
from prunekit.evaluation.evaluate import EvaluationConfig
from prunekit.files import check_writable_file, check_writable_folder, csv_text, write_text
from prunekit.nn import accelerate
from prunekit.pipeline.checkpoint import example_image, find_checkpoint, requested_spec
from prunekit.pipeline.choices import architectures, wrong_image_size
from prunekit.pipeline.deployed import is_deployed, open_deployed
from prunekit.pipeline.own_models import model_arguments, name_own_model
from prunekit.task import ModelSpec, Task, load_plugin, task_of
from prunekit.task_data import NamesClasses
from prunekit.video import FrameBoxes, Watched, WatchOptions, open_source, watch
from prunekit.video.held import HeldAttack
from prunekit.video.sources import require_video

WATCH_EXAMPLES = """
Examples:

  prunekit watch --weights runs/finetuned/model.safetensors --source clip.mp4 --out boxes.mp4

  prunekit watch --weights yolov3-tiny.weights --model yolov3-tiny --data coco128/ --source camera:0 --frames 500
      --out camera.mp4 --boxes camera.csv

  prunekit watch --weights fast.safetensors --checkpoint runs/finetuned/model.safetensors --source clip.mp4

  prunekit watch --weights runs/finetuned/model.safetensors --source clip.mp4 --attack paper --report runs/held

Ctrl-C ends it; what was written until then can be played.
"""

_COLUMNS = ("frame", "x1", "y1", "x2", "y2", "score", "class")


def watch_command(
    weights: Annotated[
        Path,
        typer.Option(
            help="model: checkpoint, folder of a command, darknet weights, or a file of prunekit.save or prunekit "
            "compact"
        ),
    ],
    source: Annotated[
        str, typer.Option(help="video file, folder of images in the order of their names, camera:0, or a stream's URL")
    ],
    out: Annotated[Path | None, typer.Option(help="video to write, such as out.mp4 (default: none)")] = None,
    boxes: Annotated[Path | None, typer.Option(help="CSV file for the boxes of every frame (default: none)")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="what a file of prunekit.save was made from: says which model it is, gives gradients"),
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            help="hold one perturbation over all frames, found by a preset of PGD such as paper: which boxes survive"
        ),
    ] = None,
    attack_frames: Annotated[int, typer.Option(help="compute the perturbation on the first N frames")] = 8,
    report: Annotated[Path | None, typer.Option(help="folder for the page of --attack (default: none)")] = None,
    seed: Annotated[int, typer.Option(help="random seed of --attack")] = 0,
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
        _check_places(out, boxes, report)
        _check(frames, threads, image_size)
        _check_attack(attack, boxes, report)
        limits = EvaluationConfig(
            score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections,
            max_candidates=max_candidates,
        )  # fmt: skip
        held = None if attack is None else HeldAttack(attack, attack_frames, seed)
        opened = open_source(source)
        if held is not None:
            require_clip(opened, source)
        spec = None if model is None else requested_spec(model, width, arguments=model_arguments(model_args or ()))
        found = _opened(weights, checkpoint, spec, image_size)
        size = found.image_size if image_size is None else image_size
        if wrong := wrong_image_size(size, found.task):
            raise InputError(f"{wrong}.")
        options = WatchOptions(
            size, grayscale, limits.score_threshold, limits.iou_threshold, limits.max_detections,
            limits.max_candidates, frames,
        )  # fmt: skip
        names = _class_names(found.task, data, size)
        rows: list[list[object]] = []
        with thread_count(threads):
            deployed = found.deployed(dense, size)
            if held is not None:
                attacked = AttackedModel(deployed, found.with_gradients(), found.task, weights)
                if watch_under_attack(source, attacked, options, held, names, out, report).was_interrupted:
                    raise typer.Exit(EXIT_INTERRUPTED)
                return
            watched = watch(
                opened, deployed, found.task, options, out, names, lambda one: rows.extend(_rows(one, names))
            )
        if boxes is not None:
            write_text(boxes, csv_text(_COLUMNS, rows))
        _tell(watched, [file for file in (out, boxes) if file is not None])
        if watched.trouble:
            raise InputError(watched.trouble)
    if watched.was_interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


@dataclass(frozen=True)
class _Opened:
    """What is to be watched.

    Attributes:
        model: The file's.
        task: What it is made for.
        image_size: Side of its usual images in pixels.
        is_accelerated: Whether the engine runs it already.
        source: The checkpoint's model; None where none was named.
        weights: The file.
    """

    model: nn.Module
    task: DetectionTask
    image_size: int
    is_accelerated: bool
    source: nn.Module | None
    weights: Path

    def deployed(self, dense: bool, size: int) -> nn.Module:
        """Return what runs: accelerated now if it is not yet and may be."""
        if dense and self.is_accelerated:
            raise InputError(f"--dense: expected a model that is not accelerated yet, but {self.weights} is.")
        if dense or self.is_accelerated:
            return self.model
        with ConsoleProgress(error_console) as progress:
            (fast,) = [accelerate(self.model, example_image(size)) for _ in progress.track(range(1), "accelerating", 1)]
        return fast

    def with_gradients(self) -> nn.Module:
        """Return what gives an attack its gradients."""
        if self.source is None and self.is_accelerated:
            raise InputError(
                f"--attack: expected --checkpoint with the model that {self.weights} was made from, as an accelerated "
                "model has no gradients."
            )
        return self.model if self.source is None else self.source


def _opened(weights: Path, checkpoint: Path | None, spec: ModelSpec | None, image_size: int | None) -> _Opened:
    if is_deployed(weights):
        like = None if checkpoint is None else find_checkpoint(checkpoint, None, spec)
        task = like.task if like is not None else None if spec is None else task_of(spec)
        found = open_deployed(weights, task, image_size)
        source = None if like is None else like.model
        return _Opened(found.model, _detector(found.task), found.image_size, found.is_accelerated, source, weights)
    if checkpoint is not None:
        raise InputError(f"--checkpoint: expected with a file of prunekit.save as --weights, got {weights}.")
    given = find_checkpoint(weights, None, spec)
    return _Opened(given.model, _detector(given.task), given.task.image_size, False, None, weights)


def _detector(task: Task) -> DetectionTask:
    if not isinstance(task, DetectionTask):
        raise InputError(f"--weights: expected a detector, got the model {task.spec.name}.")
    return task


def _check_attack(attack: str | None, boxes: Path | None, report: Path | None) -> None:
    if attack is None and report is not None:
        raise InputError("--report: expected with --attack, whose page it is, got it alone.")
    if attack is not None and boxes is not None:
        raise InputError("--boxes: expected without --attack, which writes frames.csv with --report, got both.")


def _check_places(out: Path | None, boxes: Path | None, report: Path | None) -> None:
    if out is not None:
        require_video()
        check_writable_file(out, "--out")
    if boxes is not None:
        check_writable_file(boxes, "--boxes")
    if report is not None:
        check_writable_folder(report, "--report")


def _check(frames: int | None, threads: int | None, image_size: int | None) -> None:
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
