"""After the idea of MRPF: rounds of measuring sensitivities, sharing a budget by them, pruning and fine-tuning.

Of MRPF (module robustness sensitivity) only the abstract is public. The sensitivity is RiFT's; how ratios follow from
it (`prunekit.prune.allocations.mrs`) and how a budget is spread over the rounds are ours: each round leaves the same
share of what the one before left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunekit.pipeline.allocation import Sharing, allocate_step, known_sensitivities, layer_rows
from prunekit.pipeline.checkpoint import Checkpoint, Training, Workspace
from prunekit.pipeline.command_config import MrpfStage
from prunekit.pipeline.steps import finetune, keep, pretrain, prune_one_shot, score
from prunekit.prune import ChannelGroups, MaskRule, count_costs, parse_budget, prunable_layers
from prunekit.prune.latency import deployed_ms


def prune_in_rounds(
    workspace: Workspace,
    config: MrpfStage,
    start: Checkpoint,
    training: Training,
    rule: MaskRule,
    image: Tensor,
) -> tuple[Checkpoint, list[dict[str, Any]]]:
    """Prune a model in rounds, each with fine-tuning; finished steps are found in the workspace.

    Args:
        workspace: Where the steps are kept.
        config: The budget, the number of rounds, and the settings of all steps.
        start: The model; without weights it is trained first.
        training: What to learn from, and to measure sensitivities on.
        rule: What goes as a whole, and what stays.
        image: [1, 3, H, W], of the size that costs are counted and measured at.

    Returns:
        The pruned model, and for each round its number, its budget and what became of the layers.
    """
    model = keep(workspace, start)
    if config.weights is None:
        model = pretrain(workspace, model, training, config.pretrain)
    groups = rule.groups if rule.cuts_filters else None
    whole, rounds = _whole(model, config.budget, image, groups), []
    pruned: Mapping[str, float] | None = None
    for number in range(1, config.rounds + 1):
        budget = budget_of_round(config.budget, number, config.rounds, whole)
        scores, scores_sha256 = score(workspace, model, config.scores, config, training)
        if model.masks is not None:  # what is gone is the first to go
            scores = {layer: each * model.masks[layer] for layer, each in scores.items()}
        sharing = Sharing(config.allocation, budget, config.sensitivity, config.seed)
        rule = allocate_step(workspace, model, scores, scores_sha256, rule, sharing, training, image, pruned)
        sensitivities = known_sensitivities(workspace, model, sharing, training)
        cut = prune_one_shot(workspace, model, scores, scores_sha256, rule)
        assert cut.masks is not None
        rows = layer_rows(count_costs(cut.model, image, cut.masks, groups), cut.masks, sensitivities)
        rounds.append({"round": number, "budget": budget, "layers": rows})
        model, pruned = finetune(workspace, cut, training, config.finetune, groups), rule.ratios
    return model, rounds


def _whole(start: Checkpoint, text: str, image: Tensor, groups: ChannelGroups | None) -> float:
    """Return what a model costs before anything goes, in the budget's measure; a share is in percent."""
    budget = parse_budget(text)
    if budget.is_share:
        return 100.0
    if budget.kind == "latency":
        convs = prunable_layers(start.model)
        masks = {name: torch.ones_like(conv.weight, dtype=torch.bool) for name, conv in convs.items()}
        return deployed_ms(start.model, masks, image, groups)
    costs = count_costs(start.model, image)
    return costs.weights if budget.kind == "parameters" else costs.macs


def budget_of_round(text: str, number: int, rounds: int, whole: float) -> str:
    """Return what a round may leave: whole · (left / whole) ^ (number / rounds).

    Args:
        text: The budget of all rounds.
        number: The round's, from 1.
        rounds: How many there are.
        whole: What the model costs before the first.
    """
    budget = parse_budget(text)
    if number == rounds:
        return text
    left = 100 - budget.amount if budget.kind == "ratio" else budget.amount
    amount = whole * (left / whole) ** (number / rounds)
    if budget.kind == "ratio":
        return f"{100 - amount:.6f}%"
    unit = "%" if budget.is_share else "ms" if budget.kind == "latency" else ""
    return f"{budget.kind}={amount:.6f}{unit}"
