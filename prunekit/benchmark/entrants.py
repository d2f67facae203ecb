"""Who takes part: the dense peers, the control, and prunekit at every ratio, built on one problem."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import prunekit
from prunekit.benchmark.competition import Competitor, label_of, one_line
from prunekit.benchmark.engines.calibration import calibration_inputs
from prunekit.benchmark.engines.calls import Call, UnavailableError, as_tuple
from prunekit.benchmark.engines.precisions import BYTES, FLOAT32, INT8, Precision
from prunekit.benchmark.peers import EAGER, PEERS, Peer
from prunekit.benchmark.problems import Problem
from prunekit.benchmark.settings import Settings
from prunekit.nn import AccelerationReport, WrongOutputError
from prunekit.progress import Progress
from prunekit.prune.costs import count_costs

PRUNEKIT, PRUNEKIT_INT8, CONTROL = "prunekit", "prunekit, int8", "torch eager, pruned"
# Of a kept weight's 16-bit place beside its value; a dense one is a value alone, and four in int8 share a place.
_PLACE_BYTES = {FLOAT32: 2.0, INT8: 0.5}


def expected_labels(settings: Settings) -> set[str]:
    """Return the labels of all who should take part."""
    labels = {PEERS[peer].name for peer in settings.all_peers}
    labels |= {label_of(PRUNEKIT, "prunekit", ratio) for ratio in settings.ratios}
    if settings.has_int8:
        labels |= {label_of(PRUNEKIT_INT8, "prunekit", ratio) for ratio in settings.ratios}
    if settings.control_ratio is not None:
        labels.add(label_of(CONTROL, "control", settings.control_ratio))
    return labels


def build_competitors(
    problem: Problem, settings: Settings, title: str, progress: Progress
) -> tuple[list[Competitor], dict[str, str]]:
    """Build all who can take part; gradients are off.

    Returns:
        The competitors, and why the others are not timed, by label.
    """
    peers, absent = _build_peers(problem, settings, title, progress)
    pruned, wrong = _build_pruned(problem, settings, title, progress)
    not_timed = absent | wrong
    for label, reason in not_timed.items():
        progress.message(f"{label}: not timed, {reason}")
    return [*peers, *pruned], not_timed


def _build_peers(
    problem: Problem, settings: Settings, title: str, progress: Progress
) -> tuple[list[Competitor], dict[str, str]]:
    dense = problem.build(0.0)
    competitors, absent = [], {}
    for key in progress.track(settings.all_peers, f"building peers: {title}", len(settings.all_peers)):
        peer = PEERS[key]
        if peer.notice and not peer.missing and problem.layer is None:  # a layer takes no time
            progress.message(f"{peer.name}: {peer.notice}")
        call = built(peer, dense, problem.x)
        if isinstance(call, str):
            absent[peer.name] = call
            continue
        competitors.append(
            _describe(dense, problem.x, 0.0, peer.precision, name=peer.name, kind="peer", call=call),
        )
    return competitors, absent


def built(peer: Peer, model: nn.Module, x: Tensor) -> Call | str:
    """Return a peer's call, or why there is none; gradients are off."""
    if peer.missing:
        return peer.missing
    try:
        return peer.build(model, x)
    except UnavailableError as error:
        return str(error)
    except Exception as error:  # a foreign engine raises what it likes
        return f"it cannot be built: {one_line(error)}"


def _build_pruned(
    problem: Problem, settings: Settings, title: str, progress: Progress
) -> tuple[list[Competitor], dict[str, str]]:
    competitors, wrong = [], {}
    for ratio in progress.track(settings.ratios, f"accelerating: {title}", len(settings.ratios)):
        net = problem.build(ratio)
        describe = partial(_describe, net, problem.x, ratio)
        if ratio == settings.control_ratio:
            competitors.append(describe(name=CONTROL, kind="control", call=PEERS[EAGER].build(net, problem.x)))
        try:
            fast = prunekit.accelerate(net, problem.x)
        except WrongOutputError as error:
            wrong[label_of(PRUNEKIT, "prunekit", ratio)] = one_line(error)
            continue
        call, choices = _caller(fast, problem.x), _choices(fast)
        competitors.append(describe(name=PRUNEKIT, kind="prunekit", call=call, choices=choices))
        if settings.has_int8:
            found = accelerated_in_int8(net, problem.x)
            if isinstance(found, str):
                wrong[label_of(PRUNEKIT_INT8, "prunekit", ratio)] = found
                continue
            call, choices = _caller(found, problem.x), _choices(found)
            about = {"name": PRUNEKIT_INT8, "kind": "prunekit", "call": call, "choices": choices}
            competitors.append(describe(precision=INT8, **about))
    return competitors, wrong


def accelerated_in_int8(net: nn.Module, x: Tensor) -> nn.Module | str:
    """Return a net in int8, calibrated as the peers are, or why it stays float32."""
    images = [torch.from_numpy(array) for array in calibration_inputs(x)]
    fast = prunekit.accelerate(net, x, precision="int8", calibration=images)
    report = fast.report
    assert isinstance(report, AccelerationReport)
    if any(row.precision == INT8 for row in report.rows):
        return fast
    return "; ".join(report.notes) or "it stays float32"


def _caller(model: nn.Module, x: Tensor) -> Call:
    return lambda: as_tuple(model(x))


def _choices(fast: nn.Module) -> dict[str, int]:
    report = fast.report
    assert isinstance(report, AccelerationReport)
    return dict(Counter(row.implementation for row in report.rows))


def _describe(net: nn.Module, x: Tensor, ratio: float, precision: Precision = FLOAT32, **how: Any) -> Competitor:
    layers = count_costs(net, x).layers
    weights = [net.get_submodule(row.name).weight for row in layers]
    kept = [int(weight.count_nonzero()) for weight in weights if isinstance(weight, Tensor)]
    num_weights, num_kept = sum(row.weights for row in layers), sum(kept)
    dense_bytes = BYTES[precision] * num_weights
    packed_bytes = int(min((BYTES[precision] + _PLACE_BYTES.get(precision, 2.0)) * num_kept, dense_bytes))
    return Competitor(
        **how,
        ratio=ratio,
        precision=precision,
        expected=as_tuple(net(x)),
        density=num_kept / num_weights,
        kept_macs=sum(row.macs // row.weights * count for row, count in zip(layers, kept, strict=True)),
        weight_bytes=packed_bytes if how["kind"] == "prunekit" else dense_bytes,
    )
