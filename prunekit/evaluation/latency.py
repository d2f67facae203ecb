"""How long the deployed artifact takes for one image: the network, and each step from its outputs to predictions.

The masked dense model is timed beside it as the control: torch's dense convolution cannot skip zeros, so the
control must stay flat over the ratios. Nothing is timed before both gave the same outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.compaction import CompactionResult
from prunekit.comparison import check_within
from prunekit.nn import MAX_RELATIVE_RMS, AccelerationReport, accelerate
from prunekit.task import Options, Task
from prunekit.timing import Timing, time_in_turn

#: How a compacted model is timed.
EAGER, ACCELERATED = "eager", "accelerated"


@dataclass(frozen=True)
class Latency:
    """One image's way from input tensor to predictions, stage by stage.

    Attributes:
        control: The masked dense model.
        network: The artifact.
        postprocessing: The task's steps from outputs to predictions, by name.
        compacted: The compacted model in torch eager, as the control runs, and "accelerated"; where filters went.
        int8: What is deployed in int8, if it is.
    """

    control: Timing
    network: Timing
    postprocessing: dict[str, Timing] = field(default_factory=dict)
    compacted: dict[str, Timing] = field(default_factory=dict)
    int8: Timing | None = None


@dataclass(frozen=True)
class Deployed:
    """A model as it is deployed.

    Attributes:
        latency: Of all of it.
        report: What accelerating it chose.
    """

    latency: Latency
    report: AccelerationReport


def accelerate_and_time(
    model: nn.Module,
    task: Task,
    x: Tensor,
    runs: int,
    options: Options,
    compaction: CompactionResult | None = None,
    int8: nn.Module | None = None,
) -> Deployed:
    """Make a model fast, and time it against itself; the arguments are those of `measure_latency`.

    With the model's `compaction`, its model is timed in the same turns, as it is and accelerated.
    """
    fast = accelerate(model, x)
    assert isinstance(fast.report, AccelerationReport)
    compacted = {}
    if compaction is not None:
        compacted = {EAGER: compaction.model, ACCELERATED: accelerate(compaction.model, x)}
    timed = measure_latency(model, task, fast, x, runs, options, compacted, int8)
    note = f"torch runs what follows the network: {', '.join(timed.postprocessing)}"
    return Deployed(timed, replace(fast.report, notes=[*fast.report.notes, note]))


def in_int8(model: nn.Module, x: Tensor, images: Iterable[Tensor]) -> tuple[nn.Module | None, AccelerationReport]:
    """Return a model accelerated in int8, or None where all of it stayed float32, and the report.

    Args:
        model: The model in eval mode.
        x: An image of the size to be fast at, [1, 3, H, W].
        images: What the levels are calibrated on, [1, 3, H, W] each.
    """
    fast = accelerate(model, x, precision="int8", calibration=images)
    report = fast.report
    assert isinstance(report, AccelerationReport)
    return (fast if any(row.precision == "int8" for row in report.rows) else None), report


@torch.inference_mode()
def measure_latency(
    control: nn.Module,
    task: Task,
    artifact: nn.Module,
    x: Tensor,
    runs: int,
    options: Options,
    compacted: Mapping[str, nn.Module] | None = None,
    int8: nn.Module | None = None,
) -> Latency:
    """Time the stages in turn, so that whatever slows the machine down meets all of them.

    Args:
        control: The masked dense model in eval mode.
        task: What it is made for.
        artifact: What is deployed in its place, called like it.
        x: One image, [1, 3, H, W].
        runs: Timed runs of each stage, after warm-up.
        options: Thresholds and limits of predicting.
        compacted: Other models that answer the same, by name.
        int8: A model that answers nearly the same, which is not compared.

    Returns:
        The stages' timings.

    Raises:
        WrongOutputError: When the outputs differ by more than `MAX_RELATIVE_RMS`, or are not finite.
    """
    outputs = artifact(x)
    check_same_outputs(control(x), outputs)
    others = dict(compacted or {})
    for other in others.values():
        check_same_outputs(control(x), other(x))
    steps = task.postprocessing(outputs, options)
    timings = time_in_turn(
        {
            "control": lambda: control(x),
            "network": lambda: artifact(x),
            **steps,
            **{f"compacted {name}": partial(other, x) for name, other in others.items()},
            **({} if int8 is None else {"int8": partial(int8, x)}),
        },
        runs,
    )
    compact = {name: timings[f"compacted {name}"] for name in others}
    postprocessing = {name: timings[name] for name in steps}
    return Latency(timings["control"], timings["network"], postprocessing, compact, timings.get("int8"))


def check_same_outputs(expected: Any, actual: Any) -> None:
    """Raise WrongOutputError unless every tensor of `actual` is within 1e-4 relative RMS of `expected`'s."""
    check_within(expected, actual, "the accelerated model", MAX_RELATIVE_RMS, "the masked dense model")
