"""compact: structured masks in, a certified smaller model out.

result = compact(model, example_input, masks)
result.model          # of the model's own class, with fewer channels, for any input size
print(result.certificate)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.compaction.certificate import Certificate, Difference
from prunekit.compaction.certifying import (
    DoesNotRunError,
    Trial,
    difference,
    differences,
    in_float64,
    is_exact,
    raise_first_difference,
    trials,
)
from prunekit.compaction.choosing import Choice
from prunekit.compaction.cutting import cut
from prunekit.compaction.describing import describe_groups
from prunekit.compaction.flow import ChannelFlow
from prunekit.compaction.following import follow
from prunekit.compaction.planning import Plan, make_plan
from prunekit.compaction.preparing import masked_copy
from prunekit.compaction.rounding import MULTIPLES, fastest, measure
from prunekit.errors import InputError
from prunekit.prune.costs import count_costs
from prunekit.timing import time_in_turn


@dataclass(frozen=True)
class CompactionResult:
    """A smaller model and what is known about it.

    Attributes:
        model: Of the original's class, in eval mode, with the original's names of parameters.
        certificate: What went, what stayed and why, differences, sizes, latencies.
        plan: The cuts, for what else has the shapes of the parameters (`carry_optimizer`).
        example: The inputs that the model was traced and timed on.
    """

    model: nn.Module
    certificate: Certificate
    plan: Plan
    example: tuple[Tensor, ...]


def compact(
    model: nn.Module,
    example_input: Tensor | Sequence[Tensor],
    masks: Mapping[str, Tensor] | None = None,
    *,
    multiple_of: int | None = None,
    latency_runs: int = 5,
) -> CompactionResult:
    """Remove the channels that masks silence; the result answers as the masked model does, at any input size.

    A masked filter answers a constant, which is folded into biases, or carried where zeros beside the image would
    make folding wrong. Which channels go together is read from the graph that torch.export traces; what is not
    understood there is kept whole, and named in the certificate. Both models are compared in float64 at several input
    sizes before the result is returned.

    Args:
        model: Any module in eval mode that torch.export can trace; it is not changed.
        example_input: The forward's tensor, or a sequence of its positional arguments.
        masks: Layer name → bool mask, True = kept, of the layer's weight's shape or one entry a filter. Layers that
            are not named keep their weights. None: filters that are all zero are the masked ones.
        multiple_of: Round numbers of channels up to a multiple of it, by keeping masked channels; 1 does not round,
            None takes what is measured fastest of 1, 8 and 16 (and does not round where `latency_runs` is 0).
        latency_runs: Timed calls of each model; 0 does not time.

    Raises:
        InputError: The model is in training mode or cannot be traced, or the masks do not fit it.
        WrongOutputError: The compacted model does not answer as the masked one does; the message names the layer.
    """
    inputs = (example_input,) if isinstance(example_input, Tensor) else tuple(example_input)
    if multiple_of is not None and multiple_of < 1:
        raise InputError(f"Expected multiple_of to be at least 1, got {multiple_of}.")
    masked = masked_copy(model, inputs, masks)
    original = in_float64(masked)
    rows, notes = trials(original, inputs)
    flow = follow(masked, original, inputs, rows)
    is_measured = multiple_of is None and latency_runs > 0
    multiples = MULTIPLES if is_measured else (multiple_of or 1,)
    candidates = {multiple: _cut_at(masked, original, flow, multiple, rows) for multiple in multiples}
    models = {multiple: candidate.model for multiple, candidate in candidates.items()}
    rounding_ms = measure(models, inputs, latency_runs) if is_measured else {}
    chosen = candidates[fastest(rounding_ms) if is_measured else multiples[0]]
    certificate = _certify(masked, chosen, inputs, rounding_ms, latency_runs, notes)
    return CompactionResult(chosen.model, certificate, chosen.plan, inputs)


@dataclass(frozen=True)
class _Candidate:
    """A cut model that was found exact."""

    model: nn.Module
    choice: Choice
    plan: Plan
    float64: tuple[Difference, ...]


def _cut_at(
    masked: nn.Module, original: nn.Module, flow: ChannelFlow, multiple_of: int, rows: Sequence[Trial]
) -> _Candidate:
    choice = Choice(flow, multiple_of)
    plan = make_plan(flow, choice, multiple_of)
    wide = _cut_copy(original, plan)
    try:
        found = differences(wide, rows)
    except DoesNotRunError as error:
        raise InputError(
            f"Expected every layer that runs to reach an output in the graph, but once channels were removed layer "
            f"{error.layer!r} did not run ({error})."
        ) from error
    for trial, row in zip(rows, found, strict=True):
        if not is_exact([row]):
            raise_first_difference(original, wide, choice, trial)
    return _Candidate(_cut_copy(masked, plan), choice, plan, tuple(found))


def _cut_copy(model: nn.Module, plan: Plan) -> nn.Module:
    small = copy.deepcopy(model)
    cut(small, plan)
    return small


@torch.no_grad()
def _certify(
    masked: nn.Module,
    chosen: _Candidate,
    inputs: Sequence[Tensor],
    rounding_ms: Mapping[int, float],
    latency_runs: int,
    notes: Sequence[str],
) -> Certificate:
    expected, actual = (tree_leaves(net(*inputs)) for net in (masked, chosen.model))
    narrow = difference("example", *(tuple(y for y in ys if isinstance(y, Tensor)) for ys in (expected, actual)))
    before, after = (count_costs(_OnInputs(net, inputs), inputs[0]).macs for net in (masked, chosen.model))
    latency: dict[str, float] = {}
    if latency_runs:
        calls = {"before": partial(masked, *inputs), "after": partial(chosen.model, *inputs)}
        latency = {name: timing.median_ms for name, timing in time_in_turn(calls, latency_runs).items()}
    return Certificate(
        groups=describe_groups(chosen.choice),
        float64=chosen.float64,
        float32=narrow,
        parameters_before=_parameters(masked),
        parameters_after=_parameters(chosen.model),
        macs_before=before,
        macs_after=after,
        latency_ms_before=latency.get("before"),
        latency_ms_after=latency.get("after"),
        multiple_of=chosen.plan.multiple_of,
        rounding_ms=dict(rounding_ms),
        kept_whole=tuple(chosen.choice.flow.kept_whole),
        notes=tuple(notes),
    )


class _OnInputs(nn.Module):
    """A model bound to its inputs, for what calls models with one tensor."""

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, x: Tensor) -> object:
        return self.model(*self.inputs)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
