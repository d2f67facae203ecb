"""What is known at the end: a row of results.csv for each model, and the inputs that the numbers come from."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import nn

from prunekit.compaction import CompactionResult
from prunekit.errors import InputError
from prunekit.evaluation.latency import ACCELERATED, EAGER, Latency
from prunekit.files import csv_text
from prunekit.kept_images import KeptImages
from prunekit.pipeline.choices import SharedChoices
from prunekit.progress import Progress
from prunekit.prune import ModelCost
from prunekit.task import Data, Task
from prunekit.task_data import HasTrainingPart, KeepsImages, NamesClasses
from prunekit.timing import Timing


@dataclass(frozen=True)
class RatioResult:
    """What is known about one model: `columns` are those of results.csv, in their order; None is an empty cell.

    Latencies are milliseconds for one image: the median, with the 90th and 99th percentile beside it. What accuracy is,
    and which steps follow the network, the task says (`Task.columns`, `Task.postprocessing`). For detectors these are

    * ap … ap_large: COCO's average precision, unrounded; an area class without ground truth has none. The `attacked_`
      columns are under attack, transfer_ap is under the attack made on the unpruned model.
    * confident_ap: of detections that score at least 0.5, as the report on robust pruning has it;
      false_positives_per_image: of these, those that match no object; false_positive_share: their share.
    * attack_success_rate: share of objects found clean at 0.5 that the attack makes the model lose or mislabel.
    * decode_ms, nms_ms: from outputs to boxes and scores, and non-maximum suppression.

    Of classifiers, where it was asked for, are

    * verified_accuracy: share of images proven to be classified correctly in the L∞ ball of radius verified_eps.
    * certified_accuracy_R: share of images that randomized smoothing by noise of certified_sigma classifies correctly
      with a certified L2 radius of at least R; mean_certified_radius: 0 where wrong; abstained: share of abstentions.

    Where a run was asked for further conditions (`--conditions`), F being the task's main figure, are

    * corrupted_F: the mean over the corruptions' cells.
    * unpatched_F, random_patch_F, patched_F: on the half of the images that no patch was trained on, as they are, under
      a random patch, and under the trained one.
    * candidates_per_image, overload_candidates_per_image: pairs of box and class above the threshold, clean and under
      the attack on latency; overload_F: what is found under it.
    * ms_deployed, ms_overload: medians of the network and all steps after it, summed, on clean and on attacked images
      timed in turns; ms_overload_network, ms_overload_nms, …: of each step under attack.

    Where a run deploys in int8 too (`--precision float32,int8`), are

    * int8_latency_ms: the network in int8; int8_layers: how many convolutions run so; int8_relative_rms: how far the
      outputs are from float32's.
    * int8_F, int8_attacked_F, int8_corrupted_F, int8_ms_overload, …: the columns above, those on conditions among them,
      of the model in int8. It sees the images that the float32 model was attacked by, and the patch that was trained on
      that.

    Of every task are

    * ratio: pruning ratio in percent; of a budget, the share of weights that went.
    * structure: what was dropped; scores: what ranked it; pruning: "one-shot" or "optimized" scores.
    * churn: fraction of kept weights that optimizing the scores brought in.
    * macs: multiply-accumulates of the dense model for one image; kept_macs: of the weights that stay.
    * parameters: all of the model's parameters.
    * nonzero_parameters: those of them that are not zero.
    * sparsity: share of zeros among the convolutions' weights.
    * latency_ms_control: the masked dense model.
    * latency_ms: the deployed artifact: the network, without what follows.
    * speedup: latency_ms_control / latency_ms.
    * latency_ms_compacted: where filters went, the compacted model in torch eager, as the control runs.
    * latency_ms_compacted_accelerated: the compacted model, accelerated like the artifact.
    * compacted_speedup: latency_ms_control over the smaller of these two.
    * compacted_parameters: those that the compacted model has; compacted_macs: its multiply-accumulates.
    * compacted_difference: its outputs' largest difference from the masked model's in float64, relative.
    * sparse_layers: convolutions that the artifact runs sparse, of `layers`.
    * images: evaluated images.
    * allocation: what shared the ratio or budget among layers.
    * budget: what was allowed; "" where the ratio was asked for.
    """

    columns: Mapping[str, Any]

    def __post_init__(self) -> None:
        if absent := [name for name in _SHARED if name not in self.columns]:
            raise ValueError(f"Expected the column {absent[0]}, got none.")


# What every task has; its own columns stand before "churn" and before "sparse_layers".
_SHARED = (
    "ratio", "structure", "scores", "pruning", "churn",
    "macs", "kept_macs", "parameters", "nonzero_parameters", "sparsity",
    *(f"latency_ms{kind}{part}" for kind in ("_control", "") for part in ("", "_p90", "_p99")), "speedup",
    *(f"latency_ms_compacted{kind}{part}" for kind in ("", "_accelerated") for part in ("", "_p90", "_p99")),
    "compacted_speedup", "compacted_parameters", "compacted_macs", "compacted_difference",
    "sparse_layers", "layers", "images", "image_size", "attack", "threads", "instruction_set", "processor",
    "allocation", "budget",
)  # fmt: skip


def results_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV text with all their columns, in the order in which they are met; None is an empty cell."""
    columns = dict.fromkeys(name for row in rows for name in row) or _SHARED
    return csv_text(columns, ([row.get(name) for name in columns] for row in rows))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a results.csv as dictionaries of strings, one a ratio."""
    if not path.is_file():
        raise InputError(f"Expected a run folder with {path.name}, but {path} does not exist.")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Inputs:
    """SHA-256 of the weights file and of the data sets' images and annotations; "" where nothing trains."""

    weights_sha256: str
    data_sha256: str
    train_data_sha256: str = ""


def open_data(
    config: SharedChoices, task: Task, path: Path, progress: Progress, keep: bool = False, learn: bool = False
) -> Data:
    """Open a data set as the configuration wants its images, and say what was left out.

    Args:
        config: Size, colors and number of the images.
        task: Whose data set it is.
        path: What the task reads.
        progress: Told of every kind of entry that was skipped.
        keep: Keep decoded images, up to `KEPT_BYTES`, for a data set that is passed over many times and can do that.
        learn: Open what to learn from, where the data set has such a part, instead of what evaluates.
    """
    limit = config.training_limit if learn else config.limit
    dataset = task.open_data(path, config.image_size, config.grayscale, limit)
    if learn and isinstance(dataset, HasTrainingPart):
        dataset = dataset.training()
    for note in dataset.notes():
        progress.message(note)
    if keep and isinstance(dataset, KeepsImages):
        dataset.kept = KeptImages()
    return dataset


def require_same_classes(data: Data, training: Data) -> None:
    """Raise InputError where a label means one class in the evaluation data and another in the training data."""
    if not isinstance(data, NamesClasses) or not isinstance(training, NamesClasses):
        return
    for name, other in zip_longest(data.class_names, training.class_names):
        if name != other:
            raise InputError(
                f"--train-data: expected the classes of --data in their order, got {other!r} for {name!r}."
            )


def data_digest(dataset: Data, progress: Progress) -> str:
    """Hash a data set, decoding every image once: a damaged one ends the run now, not after an hour.

    Where the data set keeps images, this is the only time that those are decoded.

    Raises:
        InputError: When an image cannot be decoded.
    """
    data = hashlib.sha256(json.dumps(dataset.identity()).encode())
    for index in progress.track(range(len(dataset)), "checking images", len(dataset)):
        data.update(dataset.fingerprint(index))
    return data.hexdigest()


def size_columns(model: nn.Module, costs: ModelCost, masked: float) -> dict[str, Any]:
    """Return how much of a model is left."""
    return {
        "macs": costs.macs,
        "kept_macs": costs.kept_macs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "nonzero_parameters": sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        "sparsity": masked,
    }


def latency_columns(latency: Latency) -> dict[str, Any]:
    """Return the network's medians and percentiles in milliseconds, and the speed-up."""
    columns = timing_columns({"latency_ms_control": latency.control, "latency_ms": latency.network})
    return columns | {"speedup": latency.control.median_ms / latency.network.median_ms}


def postprocessing_columns(latency: Latency) -> dict[str, Any]:
    """Return medians and percentiles of the steps after the network, in milliseconds."""
    return timing_columns({f"{name}_ms": timing for name, timing in latency.postprocessing.items()})


def timing_columns(timings: Mapping[str, Timing | None]) -> dict[str, Any]:
    """Return each timing's median and percentiles in milliseconds, by its name: nms_ms, nms_ms_p90, nms_ms_p99."""
    columns: dict[str, Any] = {}
    for name, timing in timings.items():
        values = (timing.median_ms, timing.p90_ms, timing.p99_ms) if timing else (None,) * 3
        columns |= dict(zip((name, f"{name}_p90", f"{name}_p99"), values, strict=True))
    return columns


def compaction_columns(latency: Latency, compaction: CompactionResult | None) -> dict[str, Any]:
    """Return the columns of results.csv on the compacted model; empty where there is none."""
    names = {"latency_ms_compacted": EAGER, "latency_ms_compacted_accelerated": ACCELERATED}
    columns = timing_columns({name: latency.compacted.get(kind) for name, kind in names.items()})
    fastest = min((timing.median_ms for timing in latency.compacted.values()), default=None)
    certificate = compaction.certificate if compaction is not None else None
    return columns | {
        "compacted_speedup": latency.control.median_ms / fastest if fastest else None,
        "compacted_parameters": certificate.parameters_after if certificate else None,
        "compacted_macs": certificate.macs_after if certificate else None,
        "compacted_difference": certificate.max_difference_float64 if certificate else None,
    }
