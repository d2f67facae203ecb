"""accelerate's second choice: the model's own forward, with convolutions on packed filters where those measured faster.

A layer that cannot be tuned, whose kernel is wrong, or that makes the model wrong, is left to the model's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from prunekit.comparison import Comparison
from prunekit.errors import first_line
from prunekit.nn.acceleration_report import LayerReport
from prunekit.nn.calls import Call
from prunekit.nn.fusion import (
    Followers,
    Fusible,
    find_fusible,
    folded_batch_norm,
    has_foreign_hooks,
    is_plain_convolution,
    replace_module,
)
from prunekit.nn.masked_conv2d import MaskedConv2d
from prunekit.nn.model_copies import sharing_copy
from prunekit.nn.reference import Reference
from prunekit.nn.tuning import tune_layer


@dataclass(frozen=True)
class PackedLayers:
    """A copy of a model in which some layers were replaced, compared with the original.

    Attributes:
        model: The copy; it was never run.
        rows: One a convolution, in the order in which they ran.
        batch_norms_folded: How many went into convolutions.
        replaced: Convolutions that are not the original's any more.
        comparison: With the original.
        notes: What was left alone, and why.
    """

    model: nn.Module
    rows: list[LayerReport]
    batch_norms_folded: int
    replaced: list[str]
    comparison: Comparison
    notes: list[str]


@dataclass(frozen=True)
class _Change:
    """What is done about one convolution: modules by the name that they take."""

    layer: str
    modules: Mapping[str, nn.Module]
    folds: bool = False


def pack_layers(model: nn.Module, reference: Reference) -> PackedLayers:
    """Fold BatchNorms, time each convolution on a packed filter, and keep what is faster and right.

    Args:
        model: a frozen copy of the original; it is not changed.
        reference: what the result is held to.

    Raises:
        WrongOutputError: the copy itself differs from the original.
    """
    trial = sharing_copy(model)
    fusible = find_fusible(trial)
    changes = _fold(trial, fusible)
    rows, winners, notes = _tune(trial, reference.example, fusible)
    for name, winner in winners.items():
        activation = fusible.followers.get(name, Followers()).activation
        before = changes.get(name, _Change(name, {}))
        more = {name: winner} | ({activation: nn.Identity()} if activation else {})
        changes[name] = replace(before, modules={**before.modules, **more})
    kept, comparison, wrong = _largest_right(model, list(changes.values()), reference)
    notes += [f"layer {change.layer} was left to torch: {reason}" for change, reason in wrong]
    rows = [_given_back(row) if row.name in {change.layer for change, _ in wrong} else row for row in rows]
    if fusible.reason:
        notes.append(fusible.reason)
    folded = sum(change.folds for change in kept)
    return PackedLayers(
        _changed(model, kept), rows, folded, [change.layer for change in kept], comparison, notes
    )  # fmt: skip


def given_back(rows: Sequence[LayerReport], reason: str) -> list[LayerReport]:
    """Return the rows of a model whose convolutions are all torch's again."""
    return [_given_back(row, reason) for row in rows]


def _given_back(row: LayerReport, reason: str = "left to torch: it made the outputs wrong") -> LayerReport:
    return row if row.implementation == "dense" else replace(row, implementation="dense", reason=reason)


def _fold(trial: nn.Module, fusible: Fusible) -> dict[str, _Change]:
    """Fold each BatchNorm2d that alone follows a convolution, in place; return the changes."""
    changes = {}
    for name, follower in fusible.followers.items():
        if follower.batch_norm is None or has_foreign_hooks(trial.get_submodule(name)):
            continue
        conv = folded_batch_norm(trial.get_submodule(name), trial.get_submodule(follower.batch_norm))
        changes[name] = _Change(name, {name: conv, follower.batch_norm: nn.Identity()}, folds=True)
    for change in changes.values():
        for name, module in change.modules.items():
            replace_module(trial, name, module)
    return changes


def _tune(
    trial: nn.Module, example: Call, fusible: Fusible
) -> tuple[list[LayerReport], dict[str, MaskedConv2d], list[str]]:
    """Run the model once and time each convolution when its input arrives."""
    rows: dict[str, LayerReport] = {}
    winners: dict[str, MaskedConv2d] = {}
    notes: list[str] = []

    def tune(name: str, conv: nn.Module, args: Sequence[Any]) -> None:
        if name in rows or len(args) != 1 or not isinstance(args[0], Tensor):
            return
        assert isinstance(conv, nn.Conv2d)
        activation = fusible.followers.get(name, Followers()).activation
        follower = trial.get_submodule(activation) if activation else None
        try:
            rows[name], winner = tune_layer(name, conv, follower, args[0].detach())
        except Exception as error:  # a kernel that fails or is wrong: torch's stays
            notes.append(f"layer {name} was left to torch: {first_line(error)}")
            return
        if winner is not None:
            winners[name] = winner

    hooks = [
        conv.register_forward_pre_hook(partial(_forwarded, partial(tune, name)))
        for name, conv in trial.named_modules()
        if name and is_plain_convolution(conv) and not has_foreign_hooks(conv)
    ]
    try:
        example.run(trial)
    finally:
        for hook in hooks:
            hook.remove()
    return list(rows.values()), winners, notes


def _forwarded(tune: Callable[[nn.Module, Sequence[Any]], None], module: nn.Module, args: tuple[Any, ...]) -> None:
    tune(module, args)


def _largest_right(
    model: nn.Module, changes: list[_Change], reference: Reference
) -> tuple[list[_Change], Comparison, list[tuple[_Change, str]]]:
    """Keep the changes that leave the outputs right; halves are tried where all are not.

    Raises:
        WrongOutputError: the outputs differ without a change.
    """
    kept: list[_Change] = []
    wrong: list[tuple[_Change, str]] = []
    waiting = [changes] if changes else []
    while waiting:
        some = waiting.pop()
        try:
            comparison = _check(model, [*kept, *some], reference)
        except Exception as error:  # a foreign forward may also raise on what it finds in place of its layers
            if len(some) == 1:
                wrong.append((some[0], first_line(error)))
            else:
                half = len(some) // 2
                waiting += [some[half:], some[:half]]
            continue
        kept += some
    if not kept or wrong:
        comparison = _check(model, kept, reference)
    return kept, comparison, wrong


def _check(model: nn.Module, changes: Sequence[_Change], reference: Reference) -> Comparison:
    fast = sharing_copy(_changed(model, changes))
    return reference.check(lambda call: call.run(fast))


def _changed(model: nn.Module, changes: Sequence[_Change]) -> nn.Module:
    copy = sharing_copy(model)
    for change in changes:
        for name, module in change.modules.items():
            replace_module(copy, name, module)
    return copy
