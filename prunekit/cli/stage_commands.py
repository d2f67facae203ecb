"""One command a stage: train, score, prune, finetune, evaluate."""

from __future__ import annotations

from typing import Any

from prunekit.cli.ending import error_console, out_console, tell, user_errors
from prunekit.cli.options import takes
from prunekit.console import ConsoleProgress, checks_table, evaluation_table
from prunekit.pipeline.command_config import EvaluateStage, FinetuneStage, PruneStage, ScoreStage, TrainStage
from prunekit.pipeline.commands import StageOutcome, finetune_stage, prune_stage, score_stage, train_stage
from prunekit.pipeline.evaluate_command import EvaluationOutcome, evaluate_stage

_AGAIN = "Run the same command again to resume an interrupted one; finished work is not repeated."

TRAIN_EXAMPLES = f"""
Examples:

  prunekit train --model yolov3-tiny --weights yolov3-tiny.weights --data train/ --out runs/robust

  prunekit train --model yolov3-tiny --data train/ --objective clean --epochs 100 --out runs/from-scratch

  prunekit train --weights runs/robust/model.safetensors --data train/ --objective trades --out runs/trades

  prunekit train --model yolov3 --weights darknet53.conv.74 --data cells/ --freeze backbone --fit-anchors
      --out runs/cells

  prunekit train --model resnet20 --data cifar10/ --train-batch-size 128 --out runs/classifier

{_AGAIN}
"""

SCORE_EXAMPLES = f"""
Examples:

  prunekit score --weights runs/robust/model.safetensors --out runs/scaled

  prunekit score --weights runs/robust/model.safetensors --data train/ --scores deeplift --out runs/deeplift

{_AGAIN}
"""

PRUNE_EXAMPLES = f"""
Examples:

  prunekit prune --weights runs/robust/model.safetensors --ratio 90 --out runs/pruned

  prunekit prune --weights runs/robust/model.safetensors --scores-file runs/deeplift/scores.safetensors
      --ratio 75 --structure filter --out runs/thin

  prunekit prune --weights runs/robust/model.safetensors --ratio 90 --optimize-scores --data train/ --out runs/hydra

{_AGAIN}
"""

FINETUNE_EXAMPLES = f"""
Examples:

  prunekit finetune --weights runs/pruned/model.safetensors --data train/ --out runs/finetuned

{_AGAIN}
"""

EVALUATE_EXAMPLES = f"""
Examples:

  prunekit evaluate --weights runs/finetuned/model.safetensors --data val/ --attack paper,standard --out runs/figures

  prunekit evaluate --weights runs/finetuned/model.safetensors --data val/ --attack strong --check --latency
      --transfer-from runs/robust/model.safetensors --out runs/all-figures

{_AGAIN} Attacks can be added in the same folder.
"""


@takes(TrainStage)
def train_command(choices: dict[str, Any], verbose: bool) -> None:
    """Train a model, adversarially by default, from weights or from scratch; writes OUT/model.safetensors."""
    with user_errors(verbose), ConsoleProgress(error_console) as progress:
        _tell(train_stage(TrainStage(**choices), progress))


@takes(ScoreStage)
def score_command(choices: dict[str, Any], verbose: bool) -> None:
    """Score every weight of a model; writes OUT/scores.safetensors."""
    with user_errors(verbose), ConsoleProgress(error_console) as progress:
        _tell(score_stage(ScoreStage(**choices), progress))


@takes(PruneStage)
def prune_command(choices: dict[str, Any], verbose: bool) -> None:
    """Prune the weights or filters with the lowest scores; writes OUT/model.safetensors, masks included."""
    with user_errors(verbose), ConsoleProgress(error_console) as progress:
        _tell(prune_stage(PruneStage(**choices), progress))


@takes(FinetuneStage)
def finetune_command(choices: dict[str, Any], verbose: bool) -> None:
    """Fine-tune a pruned model with its masks fixed; writes OUT/model.safetensors."""
    with user_errors(verbose), ConsoleProgress(error_console) as progress:
        _tell(finetune_stage(FinetuneStage(**choices), progress))


@takes(EvaluateStage)
def evaluate_command(choices: dict[str, Any], verbose: bool) -> None:
    """Evaluate a model clean and under attack; writes OUT/evaluation.json, and what was found as CSV or JSON."""
    with user_errors(verbose):
        with ConsoleProgress(error_console) as progress:
            outcome = evaluate_stage(EvaluateStage(**choices), progress)
        _show(outcome)
        if outcome.checks is not None:
            outcome.checks.require()


def _show(outcome: EvaluationOutcome) -> None:
    out_console.print(evaluation_table(outcome.cases, outcome.shown))
    if outcome.verified is not None:
        accuracy, eps = outcome.verified["verified_accuracy"], outcome.verified["eps"]
        tell(f"Verified accuracy at eps {eps:.3g}: {accuracy:.3f}")
    if outcome.certified is not None:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in outcome.certified.items())
        tell(f"Randomized smoothing: {figures}")
    if outcome.timing is not None:
        dense, fast = outcome.timing["latency_ms_control"], outcome.timing["latency_ms"]
        tell(f"Latency: {dense:.2f} ms dense, {fast:.2f} ms accelerated")
        if (small := outcome.timing["latency_ms_compacted"]) is not None:
            both = outcome.timing["latency_ms_compacted_accelerated"]
            tell(f"Compacted: {small:.2f} ms, {both:.2f} ms accelerated")
    if outcome.checks is not None:
        out_console.print(checks_table(outcome.checks))
    done = "Finished earlier" if outcome.was_finished else "Written"
    tell(f"{done}: {outcome.file}")


def _tell(outcome: StageOutcome) -> None:
    """Say what was made, or that it was there, and where."""
    if outcome.summary:
        tell(outcome.summary)
    done = "Finished earlier" if outcome.was_finished else "Written"
    for file in outcome.files:
        tell(f"{done}: {file}")
