"""One row of results.csv: everything that is known about the model pruned at one ratio."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prunekit.errors import InputError


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


def finite_or_none(value: float) -> float | None:
    """Turn nan, which JSON does not have, into None."""
    return value if math.isfinite(value) else None


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
