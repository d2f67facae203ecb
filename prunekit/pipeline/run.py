"""The main job: for each ratio prune, evaluate clean and attacked, make fast, time, and write it down."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.attacks import PRESETS
from prunekit.detection import (
    MODELS,
    AveragePrecision,
    Batch,
    CocoDataset,
    Detector,
    load_darknet_weights,
    write_detections_csv,
    write_detections_json,
)
from prunekit.errors import InputError
from prunekit.nn import AccelerationReport, accelerate, native_status
from prunekit.pipeline.config import RunConfig, ratio_name
from prunekit.pipeline.environment import describe_environment, processor
from prunekit.pipeline.evaluate import Evaluation, evaluate, nms_options
from prunekit.pipeline.examples import save_clean_examples, save_example
from prunekit.pipeline.inputs import identify_inputs
from prunekit.pipeline.latency import Latency, measure_latency
from prunekit.pipeline.progress import Progress, SilentProgress
from prunekit.pipeline.results import RatioResult, finite_or_none
from prunekit.pipeline.run_folder import OpenRun, RunFolder, check_out, open_run
from prunekit.pipeline.threads import thread_count
from prunekit.prune import apply_masks, masks_from_scores, save_masks, score_model, sparsity


@dataclass(frozen=True)
class Job:
    """What all ratios share.

    Attributes:
        config: What was asked.
        dataset: The evaluation data.
        model: The dense detector, in eval mode; never changed.
        scores: Layer name → score of every weight.
        example_ids: Images kept for the report.
    """

    config: RunConfig
    dataset: CocoDataset
    model: Detector
    scores: dict[str, Tensor]
    example_ids: set[int]


def run(config: RunConfig, progress: Progress | None = None) -> RunFolder:
    """Do the main job, or what is left of it, and return its folder.

    A ratio that is finished is not done again; whatever ended the process, only the ratio in flight is lost.

    Args:
        config: What to do.
        progress: Told how far the job has come.

    Raises:
        InputError: When something that the user gave is wrong; found out before the long work begins.
    """
    progress = progress or SilentProgress()
    check_out(config)
    with thread_count(config.threads):
        dataset, model = _open_inputs(config, progress)
        inputs = identify_inputs(config.weights, dataset, progress)
        with open_run(config, inputs) as folder:
            folder.write_json("environment.json", describe_environment())
            folder.log(f"ratios {', '.join(f'{ratio:g}' for ratio in config.ratios)}")
            scores = score_model(model, config.scores)
            job = Job(config, dataset, model, scores, save_clean_examples(folder, dataset))
            for ratio in config.ratios:
                _finish_ratio(job, folder, ratio, progress)
            folder.write_results()
    return folder


def _finish_ratio(job: Job, folder: OpenRun, ratio: float, progress: Progress) -> None:
    if folder.finished(ratio):
        progress.message(f"{ratio:g} %: finished earlier")
        return
    row, files = run_ratio(job, folder, ratio, progress)
    folder.finish(row, files)
    summary = f"{ratio:g} %: AP {_show(row.ap)}, attacked {_show(row.attacked_ap)}, {row.latency_ms:.1f} ms"
    folder.log(summary)
    progress.message(summary)


def run_ratio(job: Job, folder: RunFolder, ratio: float, progress: Progress) -> tuple[RatioResult, list[Path]]:
    """Do one ratio's work; return its row and the files that it wrote."""
    model = copy.deepcopy(job.model)
    masks = masks_from_scores(job.scores, ratio)
    apply_masks(model, masks)
    save_masks(folder.masks(ratio), masks)
    files = [folder.masks(ratio)]

    clean = _evaluate(job, folder, model, ratio, attacked=False, progress=progress)
    files += _write_detections(job, folder, ratio, clean, attacked=False)
    attacked = None
    if job.config.attack != "none":
        attacked = _evaluate(job, folder, model, ratio, attacked=True, progress=progress)
        files += _write_detections(job, folder, ratio, attacked, attacked=True)

    x = job.dataset[0].image[None]
    for _ in progress.track(range(1), f"{ratio:g} %: accelerating and timing", 1):
        artefact = accelerate(model, x)
        latency = measure_latency(model, artefact, x, job.config.latency_runs, nms_options(job.config))
    acceleration = artefact.report
    assert isinstance(acceleration, AccelerationReport)
    folder.write_json(f"acceleration/{ratio_name(ratio)}.json", acceleration.to_json())
    is_sparse = [layer.implementation != "dense" for layer in acceleration.rows]
    row = RatioResult(
        ratio=ratio,
        **_precision_columns("", clean.average_precision),
        **_precision_columns("attacked_", attacked.average_precision if attacked else None),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        nonzero_parameters=sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        sparsity=sparsity(masks),
        **_latency_columns(latency),
        sparse_layers=sum(is_sparse),
        layers=len(is_sparse),
        images=len(job.dataset),
        image_size=job.config.image_size,
        attack=job.config.attack,
        threads=torch.get_num_threads(),
        instruction_set=native_status().instruction_set,
        processor=processor().name,
    )
    return row, files


def _open_inputs(config: RunConfig, progress: Progress) -> tuple[CocoDataset, Detector]:
    """Open the data and load the weights, cheapest check first."""
    if not config.weights.is_file():
        raise InputError(f"--weights: expected a darknet .weights file, but {config.weights} is none.")
    dataset = CocoDataset.open(config.data, config.image_size, config.greyscale, config.limit)
    for what, reason in dataset.skipped:
        progress.message(f"skipped {what}: {reason}")
    model = MODELS[config.model](num_classes=dataset.num_classes, width=config.width)
    load_darknet_weights(model, config.weights)
    return dataset, model.eval()


def _evaluate(
    job: Job, folder: RunFolder, model: Detector, ratio: float, attacked: bool, progress: Progress
) -> Evaluation:
    def keep_example(image_id: int, batch: Batch, row: int, x: Tensor) -> None:
        if attacked and image_id in job.example_ids:
            save_example(folder.example(image_id, ratio), x, batch.letterboxes[row])

    attack = PRESETS[job.config.attack] if attacked else None
    description = f"{ratio:g} %: {'under attack' if attacked else 'clean'}"
    return evaluate(model, job.dataset, job.config, attack, progress, description, keep_example)


def _write_detections(job: Job, folder: RunFolder, ratio: float, evaluation: Evaluation, attacked: bool) -> list[Path]:
    csv_path, json_path = (folder.detections(ratio, attacked, suffix) for suffix in ("csv", "json"))
    write_detections_csv(csv_path, evaluation.detections, job.dataset.categories)
    write_detections_json(json_path, evaluation.detections, job.dataset.categories)
    return [csv_path, json_path]


def _precision_columns(prefix: str, precision: AveragePrecision | None) -> dict[str, Any]:
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    values = [finite_or_none(getattr(precision, name)) if precision else None for name in names]
    return {prefix + name: value for name, value in zip(names, values, strict=True)}


def _latency_columns(latency: Latency) -> dict[str, Any]:
    timings = {
        "latency_ms_control": latency.control,
        "latency_ms": latency.network,
        "decode_ms": latency.decode,
        "nms_ms": latency.nms,
    }
    columns = {"speedup": latency.control.median_ms / latency.network.median_ms}
    for name, timing in timings.items():
        columns |= {name: timing.median_ms, f"{name}_p90": timing.p90_ms, f"{name}_p99": timing.p99_ms}
    return columns


def _show(precision: float | None) -> str:
    return "–" if precision is None else f"{precision:.3f}"
