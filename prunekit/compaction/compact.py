"""compact: structured masks in, a certified smaller model out.

result = compact(model, example_input, masks)
result.model          # of the model's own class, with fewer channels, for any input size
print(result.certificate)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.compaction.certificate import Certificate, Difference
from prunekit.compaction.channel_flow import follow
from prunekit.compaction.differences import DoesNotRunError, differences, own_difference, raise_first_difference
from prunekit.compaction.groups import describe_groups
from prunekit.compaction.keep_set import Choice
from prunekit.compaction.masked_copy import masked_copy
from prunekit.compaction.plan import Plan, make_plan
from prunekit.compaction.proving import Proof, prove
from prunekit.compaction.rounding import MULTIPLES, fastest, measure
from prunekit.compaction.surgery import cut_copy
from prunekit.errors import InputError
from prunekit.graph.calls import Call
from prunekit.graph.channels.channel_flow import ChannelFlow
from prunekit.nn.calls import preserved_random_state
from prunekit.prune.costs import count_costs
from prunekit.timing import time_in_turn


@dataclass(frozen=True)
class CompactionResult:
    """A smaller model and what is known about it.

    Attributes:
        model: Of the original's class, in eval mode, with the original's names of parameters.
        certificate: What went, what stayed and why, differences, sizes, latencies.
        plan: The cuts, for what else has the shapes of the parameters (`carry_optimizer`).
        example: The positional arguments that the model was traced and timed on.
        example_kwargs: The keyword arguments beside them.
    """

    model: nn.Module
    certificate: Certificate
    plan: Plan
    example: tuple[Any, ...]
    example_kwargs: Mapping[str, Any] = field(default_factory=dict)


def compact(
    model: nn.Module,
    example_input: Tensor | Sequence[Any] | Mapping[str, Any],
    masks: Mapping[str, Tensor] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    multiple_of: int | None = None,
    latency_runs: int = 5,
) -> CompactionResult:
    """Remove the channels that masks silence; the result answers as the masked model does, at any input size.

    A masked filter answers a constant, which is folded into biases, or carried where zeros beside the image would
    make folding wrong. Which channels go together is read from the graph that torch.export traces; what is not
    understood there is kept whole, and named in the certificate. Both models are compared in float64 at several input
    sizes before the result is returned; casts inside the forward are left out on both sides. Where the model does not
    run in float64, it is compared in its own dtype, and the certificate says so.

    Args:
        model: Any module in eval mode that torch.export can trace; it is not changed. Parametrized weights, and those
            that weight_norm, spectral_norm and torch's pruning compute, become plain parameters of the result.
        example_input: The forward's tensor, a list or tuple of its positional arguments, or a dict of its keyword
            arguments; arguments may be None and nest tensors in any way, such as ([image, image],) for a list.
        masks: Layer name → bool mask, True = kept, of the layer's weight's shape or one entry a filter. Layers that
            are not named keep their weights. None: filters that are all zero are the masked ones.
        example_kwargs: Keyword arguments beside positional ones.
        multiple_of: Round numbers of channels up to a multiple of it, by keeping masked channels; 1 does not round,
            None takes what is measured fastest of 1, 8 and 16 (and does not round where `latency_runs` is 0).
        latency_runs: Timed calls of each model; 0 does not time.

    Raises:
        InputError: The model is in training mode or cannot be traced, the masks do not fit it, or its outputs cannot
            be compared, because they are random, not finite or empty.
        WrongOutputError: The compacted model does not answer as the masked one does; the message names the layer.
    """
    if multiple_of is not None and multiple_of < 1:
        raise InputError(f"Expected multiple_of to be at least 1, got {multiple_of}.")
    example = Call.of(model, example_input, example_kwargs).copied()
    with preserved_random_state():
        return _compact(model, example, masks, multiple_of, latency_runs)


def _compact(
    model: nn.Module, example: Call, masks: Mapping[str, Tensor] | None, multiple_of: int | None, latency_runs: int
) -> CompactionResult:
    masked = masked_copy(model, example, masks)
    proof = prove(masked, example)
    flow = follow(masked, example, proof)
    is_measured = multiple_of is None and latency_runs > 0
    multiples = MULTIPLES if is_measured else (multiple_of or 1,)
    candidates = {multiple: _cut_at(masked, flow, multiple, proof) for multiple in multiples}
    models = {multiple: candidate.model for multiple, candidate in candidates.items()}
    rounding_ms = measure(models, example, latency_runs) if is_measured else {}
    chosen = candidates[fastest(rounding_ms) if is_measured else multiples[0]]
    certificate = _certify(masked, chosen, example, rounding_ms, latency_runs, proof)
    return CompactionResult(chosen.model, certificate, chosen.plan, example.args, example.kwargs)


@dataclass(frozen=True)
class _Candidate:
    """A cut model that was found exact."""

    model: nn.Module
    choice: Choice
    plan: Plan
    rows: tuple[Difference, ...]


def _cut_at(masked: nn.Module, flow: ChannelFlow, multiple_of: int, proof: Proof) -> _Candidate:
    choice = Choice(flow, multiple_of)
    plan = make_plan(flow, choice, multiple_of)
    wide = cut_copy(proof.original, plan)
    try:
        found = differences(wide, proof)
    except DoesNotRunError as error:
        raise InputError(
            f"Expected every layer that runs to reach an output in the graph, but once channels were removed layer "
            f"{error.layer!r} did not run ({error})."
        ) from error
    for trial, row in zip(proof.trials, found, strict=True):
        if not proof.is_equal(row):
            proof.blame_randomness(type(masked).__name__)
            proof.blame_amplification(type(masked).__name__)
            raise_first_difference(wide, choice, proof, trial)
    return _Candidate(cut_copy(masked, plan), choice, plan, tuple(found))


@torch.no_grad()
def _certify(
    masked: nn.Module,
    chosen: _Candidate,
    example: Call,
    rounding_ms: Mapping[int, float],
    latency_runs: int,
    proof: Proof,
) -> Certificate:
    narrow = own_difference(proof, masked, chosen.model, example) if proof.is_wide else chosen.rows[0]
    before, after = (count_costs(_OnExample(net, example), example.tensors[0]).macs for net in (masked, chosen.model))
    latency: dict[str, float] = {}
    if latency_runs:
        inputs = [example.copied(), example.copied()]  # forwards may write into what they are given
        calls = {
            name: partial(net, *call.args, **call.kwargs)
            for name, net, call in zip(("before", "after"), (masked, chosen.model), inputs, strict=True)
        }
        latency = {name: timing.median_ms for name, timing in time_in_turn(calls, latency_runs).items()}
    return Certificate(
        groups=describe_groups(chosen.choice),
        float64=chosen.rows if proof.is_wide else (),
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
        notes=proof.all_notes,
        own_dtype=() if proof.is_wide else chosen.rows,
        proof_dtype=proof.dtype,
    )


class _OnExample(nn.Module):
    """A model bound to its example, for what calls models with one tensor."""

    def __init__(self, model: nn.Module, example: Call) -> None:
        super().__init__()
        self.model, self._example = model, example

    def forward(self, x: Tensor) -> object:
        return self._example.run(self.model)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
