"""What is known at the end: a row of results.csv for each model, and the inputs that the numbers come from."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prunekit.compaction import CompactionResult
from prunekit.detection import CocoDataset, Detector
from prunekit.errors import InputError
from prunekit.evaluation.latency import ACCELERATED, EAGER, Latency
from prunekit.pipeline.config import SharedChoices
from prunekit.progress import Progress
from prunekit.prune import ModelCost


@dataclass(frozen=True)
class RatioResult:
    """The fields are the columns of results.csv, in this order; None is an empty cell.

    AP figures are COCO's, unrounded; an area class without ground truth has none. Latencies are
    milliseconds for one image: the median, with the 90th and 99th percentile beside it.

    Attributes:
        ratio: Pruning ratio in percent.
        structure: What was dropped; scores: what ranked it; pruning: "one-shot" or "optimised" scores.
        ap: Average precision over IoU 0.50 to 0.95; the `attacked_` columns are under attack.
        transfer_ap: Under the attack made on the unpruned model.
        confident_ap: Of detections that score at least 0.5, as the report on robust pruning has it.
        false_positives_per_image: Detections of at least 0.5 that match no object.
        false_positive_share: Their share of all such detections.
        attack_success_rate: Share of objects found clean at 0.5 that the attack makes the model lose or mislabel.
        churn: Fraction of kept weights that optimising the scores brought in.
        macs: Multiply-accumulates of the dense model for one image; kept_macs: of the weights that stay.
        parameters: All of the model's parameters.
        nonzero_parameters: Those of them that are not zero.
        sparsity: Share of zeros among the convolutions' weights.
        latency_ms_control: The masked dense model.
        latency_ms: The deployed artefact: backbone and heads, without decoding and suppression.
        speedup: latency_ms_control / latency_ms.
        latency_ms_compacted: Where filters went, the compacted model in torch eager, as the control runs.
        latency_ms_compacted_accelerated: The compacted model, accelerated like the artefact.
        compacted_speedup: latency_ms_control over the smaller of these two.
        compacted_parameters: Those that the compacted model has; compacted_macs: its multiply-accumulates.
        compacted_difference: Its outputs' largest difference from the masked model's in float64, relative.
        sparse_layers: Convolutions that the artefact runs sparse, of `layers`.
        images: Evaluated images.
    """

    ratio: float
    structure: str
    scores: str
    pruning: str
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    attacked_ap: float | None
    attacked_ap50: float | None
    attacked_ap75: float | None
    attacked_ap_small: float | None
    attacked_ap_medium: float | None
    attacked_ap_large: float | None
    transfer_ap: float | None
    confident_ap: float
    confident_ap50: float
    attacked_confident_ap: float | None
    attacked_confident_ap50: float | None
    false_positives_per_image: float
    false_positive_share: float | None
    attack_success_rate: float | None
    churn: float | None
    macs: int
    kept_macs: int
    parameters: int
    nonzero_parameters: int
    sparsity: float
    latency_ms_control: float
    latency_ms_control_p90: float
    latency_ms_control_p99: float
    latency_ms: float
    latency_ms_p90: float
    latency_ms_p99: float
    speedup: float
    latency_ms_compacted: float | None
    latency_ms_compacted_p90: float | None
    latency_ms_compacted_p99: float | None
    latency_ms_compacted_accelerated: float | None
    latency_ms_compacted_accelerated_p90: float | None
    latency_ms_compacted_accelerated_p99: float | None
    compacted_speedup: float | None
    compacted_parameters: int | None
    compacted_macs: int | None
    compacted_difference: float | None
    decode_ms: float
    decode_ms_p90: float
    decode_ms_p99: float
    nms_ms: float
    nms_ms_p90: float
    nms_ms_p99: float
    sparse_layers: int
    layers: int
    images: int
    image_size: int
    attack: str
    threads: int
    instruction_set: str | None
    processor: str

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RatioResult:
        """Build a row from `asdict`'s values; raise TypeError when a field is missing or unknown."""
        return cls(**values)


COLUMNS = tuple(field.name for field in fields(RatioResult))


def results_csv(rows: Sequence[RatioResult]) -> str:
    """Return the rows as CSV text with a header; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


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


def open_data(config: SharedChoices, path: Path, progress: Progress) -> CocoDataset:
    """Open a data set as the configuration wants its images, and say what was left out."""
    dataset = CocoDataset.open(path, config.image_size, config.greyscale, config.limit)
    for kind, count in dataset.skipped_by_reason.items():
        first = next(skip for skip in dataset.skipped if (skip.kind or skip.reason) == kind)
        progress.message(f"skipped {count} {kind}: {first.what} {first.reason}{' …' if count > 1 else ''}")
    return dataset


def data_digest(dataset: CocoDataset, progress: Progress) -> str:
    """Hash a data set, decoding every image once: a damaged one ends the run now, not after an hour.

    Raises:
        InputError: When an image cannot be decoded.
    """
    facts = [dataset.image_size, dataset.greyscale, [asdict(category) for category in dataset.categories]]
    data = hashlib.sha256(json.dumps(facts).encode())
    for index in progress.track(range(len(dataset)), "checking images", len(dataset)):
        record = dataset.images[index]
        dataset[index]
        data.update(json.dumps(asdict(record), sort_keys=True).encode())
        data.update((dataset.image_folder / record.file_name).read_bytes())
    return data.hexdigest()


def size_columns(model: Detector, costs: ModelCost, masked: float) -> dict[str, Any]:
    """Return how much of a detector is left."""
    return {
        "macs": costs.macs,
        "kept_macs": costs.kept_macs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "nonzero_parameters": sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        "sparsity": masked,
    }


def latency_columns(latency: Latency) -> dict[str, Any]:
    """Return a latency's medians and percentiles, in milliseconds."""
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


def compaction_columns(latency: Latency, compaction: CompactionResult | None) -> dict[str, Any]:
    """Return the columns of results.csv on the compacted model; empty where there is none."""
    columns: dict[str, Any] = {}
    for kind, name in ((EAGER, "latency_ms_compacted"), (ACCELERATED, "latency_ms_compacted_accelerated")):
        timing = latency.compacted.get(kind)
        columns |= {name: timing.median_ms if timing else None}
        columns |= {f"{name}_p90": timing.p90_ms if timing else None, f"{name}_p99": timing.p99_ms if timing else None}
    fastest = min((timing.median_ms for timing in latency.compacted.values()), default=None)
    certificate = compaction.certificate if compaction is not None else None
    return columns | {
        "compacted_speedup": latency.control.median_ms / fastest if fastest else None,
        "compacted_parameters": certificate.parameters_after if certificate else None,
        "compacted_macs": certificate.macs_after if certificate else None,
        "compacted_difference": certificate.max_difference_float64 if certificate else None,
    }
