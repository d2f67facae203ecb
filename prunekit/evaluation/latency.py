"""How long the deployed artefact takes for one image: network, decoding and suppression apart.

The masked dense model is timed beside it as the control: torch's dense convolution cannot skip zeros, so the
control must stay flat over the ratios. Nothing is timed before both gave the same outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.compaction import CompactionResult
from prunekit.comparison import relative_rms
from prunekit.detection import Detector, decode, nms
from prunekit.nn import MAX_RELATIVE_RMS, AccelerationReport, WrongOutputError, accelerate
from prunekit.timing import Timing, time_in_turn

#: How a compacted model is timed.
EAGER, ACCELERATED = "eager", "accelerated"


@dataclass(frozen=True)
class Latency:
    """One image's way from input tensor to detections, stage by stage.

    Attributes:
        control: The masked dense model.
        network: The artefact: backbone and heads.
        decode: Head logits to boxes and scores.
        nms: Non-maximum suppression.
        compacted: The compacted model in torch eager, as the control runs, and "accelerated"; where filters went.
    """

    control: Timing
    network: Timing
    decode: Timing
    nms: Timing
    compacted: dict[str, Timing] = field(default_factory=dict)


def accelerate_and_time(
    model: Detector, x: Tensor, runs: int, nms_options: dict[str, Any], compaction: CompactionResult | None = None
) -> tuple[Latency, AccelerationReport]:
    """Make a detector fast, and time it against itself; the arguments are those of `measure_latency`.

    With the detector's `compaction`, its model is timed in the same turns, as it is and accelerated.
    """
    fast = accelerate(model, x)
    assert isinstance(fast.report, AccelerationReport)
    compacted = {}
    if compaction is not None:
        compacted = {EAGER: compaction.model, ACCELERATED: accelerate(compaction.model, x)}
    return measure_latency(model, fast, x, runs, nms_options, compacted), fast.report


@torch.inference_mode()
def measure_latency(
    control: Detector,
    artefact: nn.Module,
    x: Tensor,
    runs: int,
    nms_options: dict[str, Any],
    compacted: Mapping[str, nn.Module] | None = None,
) -> Latency:
    """Time the stages in turn, so that whatever slows the machine down meets all of them.

    Args:
        control: The masked dense model in eval mode.
        artefact: What is deployed in its place, called like it.
        x: One image, [1, 3, H, W].
        runs: Timed runs of each stage, after warm-up.
        nms_options: Thresholds and limits for `prunekit.detection.nms`.
        compacted: Other models that answer the same, by name.

    Returns:
        The stages' timings.

    Raises:
        WrongOutputError: When the outputs differ by more than `MAX_RELATIVE_RMS`, or are not finite.
    """
    outputs = artefact(x)
    check_same_outputs(control(x), outputs)
    others = dict(compacted or {})
    for other in others.values():
        check_same_outputs(control(x), other(x))
    facts = (control.anchors, control.strides, control.num_classes)
    boxes, scores = decode(outputs, *facts)
    timings = time_in_turn(
        {
            "control": lambda: control(x),
            "network": lambda: artefact(x),
            "decode": lambda: decode(outputs, *facts),
            "nms": lambda: nms(boxes, scores, **nms_options),
            **{f"compacted {name}": partial(other, x) for name, other in others.items()},
        },
        runs,
    )
    found = {name: timings.pop(f"compacted {name}") for name in others}
    return Latency(**timings, compacted=found)


def check_same_outputs(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> None:
    """Raise WrongOutputError unless every head of `actual` is within 1e-4 relative RMS of `expected`'s."""
    for head, (a, b) in enumerate(zip(expected, actual, strict=True)):
        difference = relative_rms(a, b)
        if not difference <= MAX_RELATIVE_RMS:  # also when it is nan
            raise WrongOutputError(
                f"The accelerated model's head {head} differs from the masked dense model's by "
                f"{difference:.3g} relative RMS (at most {MAX_RELATIVE_RMS:g} is rounding); "
                f"its latency is not measured."
            )
