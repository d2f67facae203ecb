"""Where to prune: the steps that measure sensitivities and share a budget among layers, and their settings."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.attacks import attack_identity, attack_named
from prunekit.errors import InputError
from prunekit.evaluation.sensitivity import SensitivityConfig, module_robustness_sensitivity
from prunekit.files import csv_text, write_text
from prunekit.nn.computed_weights import effective
from prunekit.pipeline.budget_config import SENSITIVITIES
from prunekit.pipeline.checkpoint import Checkpoint, Training, Workspace
from prunekit.pipeline.steps import rule_identity
from prunekit.pipeline.store import sha256
from prunekit.processor import processor
from prunekit.prune import MaskRule, ModelCost, allocated, parse_budget
from prunekit.prune.sensitivity import Sensitivity, sensitive_layers


@dataclass(frozen=True)
class Sharing:
    """How a budget is shared among layers.

    Attributes:
        allocation: A key of `ALLOCATIONS`.
        budget: As `parse_budget` reads it.
        config: How sensitivities are measured, for the allocation mrs.
        seed: What their images are drawn by.
        file: Sensitivities that were measured before.
    """

    allocation: str
    budget: str
    config: SensitivityConfig
    seed: int
    file: Path | None = None


def allocate_step(
    workspace: Workspace,
    start: Checkpoint,
    scores: Mapping[str, Tensor],
    scores_sha256: str,
    rule: MaskRule,
    sharing: Sharing,
    training: Training | None,
    image: Tensor,
    pruned: Mapping[str, float] | None = None,
) -> MaskRule:
    """Return the rule with a ratio for each layer; found once, as measured milliseconds never come again.

    Args:
        workspace: Where the ratios are kept.
        start: The model.
        scores: What ranks its weights; `scores_sha256` is their file's.
        scores_sha256: See there.
        rule: What goes as a whole, and what stays.
        sharing: What may be left, and how it is shared.
        training: Images for sensitivities.
        image: [1, 3, H, W], of the size that costs are counted and measured at.
        pruned: Layer → the ratio in percent that it has lost already.
    """
    inputs, sensitivities = {"model": start.sha256, "scores": scores_sha256}, None
    if sharing.allocation == "mrs":
        found, inputs["sensitivities"] = _sensitivities(workspace, start, sharing, training)
        sensitivities = {name: one.value for name, one in found.items()}
    identity = rule_identity(rule) | {"allocation": sharing.allocation, "budget": sharing.budget}
    identity |= {"image_size": list(image.shape[2:]), "pruned": dict(pruned or {})}
    if "latency" in (sharing.allocation, parse_budget(sharing.budget).kind):
        identity |= {"processor": processor().name, "threads": torch.get_num_threads()}
    folder = workspace.store.open("allocate", identity, inputs)
    result = folder.result()
    if result is None:
        for _ in workspace.progress.track(range(1), f"sharing {sharing.budget} by {sharing.allocation}", 1):
            shared = allocated(
                start.model, scores, replace(rule, ratio_percent=0, scope="layer"), sharing.budget, image,
                allocation=sharing.allocation, sensitivities=sensitivities, pruned=pruned,
            )  # fmt: skip
        result = {"ratios": dict(shared.ratios)}
        folder.finish(result)
    return replace(rule, ratio_percent=0, scope="layer", ratios=result["ratios"])


def _sensitivities(
    workspace: Workspace, start: Checkpoint, sharing: Sharing, training: Training | None
) -> tuple[dict[str, Sensitivity], str]:
    if sharing.file is not None:
        return read_sensitivities(sharing.file)[0], sha256(sharing.file)
    if training is None:
        raise InputError("The allocation mrs measures sensitivities on training images, but none are given.")
    return sensitivity_step(workspace, start, training, sharing.config, sharing.seed)


def known_sensitivities(
    workspace: Workspace, start: Checkpoint, sharing: Sharing, training: Training | None
) -> dict[str, float]:
    """Return the sensitivities that a budget was shared by, by module; none where it was shared by something else."""
    if sharing.allocation != "mrs":
        return {}
    return {name: found.value for name, found in _sensitivities(workspace, start, sharing, training)[0].items()}


def layer_rows(
    costs: ModelCost,
    masks: Mapping[str, Tensor],
    sensitivities: Mapping[str, float],
    ms: Mapping[str, float | None] | None = None,
) -> list[dict[str, Any]]:
    """Return what became of each pruned layer: its ratio in percent, its costs, what is known of its sensitivity."""
    return [
        {
            **{"layer": row.name, "ratio": 100 * (1 - float(masks[row.name].float().mean()))},
            **{name: getattr(row, name) for name in ("weights", "kept_weights", "macs", "kept_macs")},
            **{"ms": (ms or {}).get(row.name), "sensitivity": sensitivities.get(row.name)},
        }
        for row in costs.layers
        if row.name in masks
    ]


def sensitivity_step(
    workspace: Workspace, start: Checkpoint, training: Training, config: SensitivityConfig, seed: int
) -> tuple[dict[str, Sensitivity], str]:
    """Measure each module's sensitivity, or go on where a process was ended; return the file's SHA-256, too."""
    identity = {**config.model_dump(exclude={"batch_size"}), "seed": seed}
    identity["attack"] = attack_identity(attack_named(config.attack))
    folder = workspace.store.open("sensitivity", identity, {"model": start.sha256, "data": training.sha256})
    path = folder.file(SENSITIVITIES)
    if folder.result() is None:
        weights = {name: effective(module).numel() for name, module in sensitive_layers(start.model).items()}

        def save(found: Mapping[str, Sensitivity]) -> None:
            write_sensitivities(path, found, weights)

        done = read_sensitivities(path)[0] if path.is_file() else {}
        found = module_robustness_sensitivity(
            start.model, start.task, training.data, config, seed=seed, done=done, save=save, progress=workspace.progress
        )
        save(found)
        folder.finish({}, SENSITIVITIES)
    return read_sensitivities(path)[0], folder.output(SENSITIVITIES)


def write_sensitivities(path: Path, found: Mapping[str, Sensitivity], weights: Mapping[str, int]) -> None:
    """Write a row for each module: its name and number of weights, the sensitivity, and the one to first order."""
    rows = ([name, weights[name], one.exact, one.first_order] for name, one in found.items())
    write_text(path, csv_text(("module", "weights", "sensitivity", "first_order"), rows))


def read_sensitivities(path: Path) -> tuple[dict[str, Sensitivity], dict[str, int]]:
    """Read what `write_sensitivities` wrote: sensitivities and numbers of weights, by module.

    Raises:
        InputError: When there is no such file, or it holds something else.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        found = {row["module"]: _read(row) for row in rows}
        return found, {row["module"]: int(row["weights"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--sensitivities: expected a {SENSITIVITIES} of prunekit sensitivity, got {path}.") from error


def _read(row: Mapping[str, str]) -> Sensitivity:
    return Sensitivity(float(row["first_order"]), float(row["sensitivity"]) if row["sensitivity"] else None)
