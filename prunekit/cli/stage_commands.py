"""One command a stage: train, score, sensitivity, prune, finetune, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunekit.cli.ending import error_console, out_console, tell, user_errors
from prunekit.cli.options import takes
from prunekit.console import (
    ConsoleProgress,
    checks_table,
    corruptions_table,
    deployed_table,
    evaluation_table,
    sensitivities_table,
)
from prunekit.evaluation.corruptions.summary import CorruptionSummary
from prunekit.pipeline.allocation import read_sensitivities
from prunekit.pipeline.command_config import (
    EvaluateStage,
    FinetuneStage,
    MrpfStage,
    PruneStage,
    ScoreStage,
    SensitivityStage,
    TrainStage,
)
from prunekit.pipeline.commands import (
    StageOutcome,
    finetune_stage,
    mrpf_stage,
    prune_stage,
    score_stage,
    sensitivity_stage,
    train_stage,
)
from prunekit.pipeline.corruptions import TABLE
from prunekit.pipeline.evaluate_command import EvaluationOutcome, evaluate_stage
from prunekit.pipeline.overload import overload_sentences
from prunekit.pipeline.patch import patch_sentence
from prunekit.prune.sensitivity import rank_correlation
from prunekit.report import write_corruption_plots, write_evaluation_page, write_rounds_plot, write_sensitivity_plot

_AGAIN = "Run the same command again to resume an interrupted one; finished work is not repeated."

TRAIN_EXAMPLES = f"""
Examples:

  prunekit train --model yolov3-tiny --weights yolov3-tiny.weights --data train/ --out runs/robust

  prunekit train --model yolov3-tiny --data train/ --objective clean --epochs 100 --out runs/from-scratch

  prunekit train --weights runs/robust/model.safetensors --data train/ --objective trades --out runs/trades

  prunekit train --weights runs/robust/model.safetensors --data train/ --objective pgd-at
      --train-attack pool:paper,standard-l2 --out runs/adaptive

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

SENSITIVITY_EXAMPLES = f"""
Examples:

  prunekit sensitivity --weights runs/robust/model.safetensors --data train/ --out runs/mrs

  prunekit sensitivity --weights runs/robust/model.safetensors --data train/ --method fast --out runs/fast

{_AGAIN}
"""

PRUNE_EXAMPLES = f"""
Examples:

  prunekit prune --weights runs/robust/model.safetensors --ratio 90 --out runs/pruned

  prunekit prune --weights runs/robust/model.safetensors --scores-file runs/deeplift/scores.safetensors
      --ratio 75 --structure filter --out runs/thin

  prunekit prune --weights runs/robust/model.safetensors --ratio 90 --optimize-scores --data train/ --out runs/hydra

  prunekit prune --weights runs/robust/model.safetensors --structure filter --budget macs=50% --allocation mrs
      --sensitivities runs/mrs/sensitivities.csv --out runs/half

  prunekit prune --weights runs/robust/model.safetensors --budget latency=20ms --allocation latency --out runs/fast

{_AGAIN}
"""

MRPF_EXAMPLES = f"""
Examples:

  prunekit mrpf --weights runs/robust/model.safetensors --data train/ --budget macs=50% --out runs/mrpf

  prunekit mrpf --model resnet20 --data cifar10/ --structure filter --budget macs=50% --rounds 4 --objective trades
      --out runs/mrpf

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

  prunekit evaluate --weights runs/finetuned/model.safetensors --data val/ --corruptions benchmark
      --attack none --out runs/corrupt

  prunekit evaluate --weights runs/finetuned/model.safetensors --data val/ --attack latency
      --max-candidates 1000 --out runs/overload

  prunekit evaluate --weights runs/finetuned/model.safetensors --data val/ --attack patch --patch-goal vanish
      --out runs/patched

  prunekit evaluate --weights runs/finetuned/model.safetensors --data val/ --attack paper,patch,latency
      --corruptions benchmark --deployed small.prunekit --precision int8 --calibration-data train/ --out runs/deployed

{_AGAIN} Attacks and corruptions can be added in the same folder.
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


@takes(SensitivityStage)
def sensitivity_command(choices: dict[str, Any], verbose: bool) -> None:
    """Measure how the attacked loss rises when one module's weight moves a little; writes OUT/sensitivities.csv."""
    with user_errors(verbose):
        with ConsoleProgress(error_console) as progress:
            outcome = sensitivity_stage(SensitivityStage(**choices), progress)
        found, weights = read_sensitivities(outcome.files[0])
        write_sensitivity_plot(outcome.files[0].with_suffix(".png"), found)
        out_console.print(sensitivities_table(found, weights))
        if (agreement := rank_correlation(found)) is not None:
            out_console.print(f"Rank correlation with the first order: {agreement:.3f}", highlight=False)
        _tell(outcome)


@takes(PruneStage)
def prune_command(choices: dict[str, Any], verbose: bool) -> None:
    """Prune the weights or filters with the lowest scores; writes OUT/model.safetensors, masks included."""
    with user_errors(verbose), ConsoleProgress(error_console) as progress:
        _tell(prune_stage(PruneStage(**choices), progress))


@takes(MrpfStage)
def mrpf_command(choices: dict[str, Any], verbose: bool) -> None:
    """Prune in rounds: measure sensitivities, share the budget by them, prune, fine-tune (after the idea of MRPF)."""
    with user_errors(verbose), ConsoleProgress(error_console) as progress:
        outcome = mrpf_stage(MrpfStage(**choices), progress)
        write_rounds_plot(outcome.files[-1])
        _tell(outcome)


@takes(FinetuneStage)
def finetune_command(choices: dict[str, Any], verbose: bool) -> None:
    """Fine-tune a pruned model with its masks fixed; writes OUT/model.safetensors."""
    with user_errors(verbose), ConsoleProgress(error_console) as progress:
        _tell(finetune_stage(FinetuneStage(**choices), progress))


@takes(EvaluateStage)
def evaluate_command(choices: dict[str, Any], verbose: bool) -> None:
    """Evaluate a model clean, under attack and under corruptions; writes OUT/evaluation.json and what was found."""
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
    if outcome.corruptions is not None:
        _show_corruptions(outcome.file.parent, outcome.corruptions)
    for name, found in outcome.overload.items():
        for sentence in overload_sentences(found, outcome.cases[name], outcome.shown[0]):
            tell(sentence)
    if outcome.patch is not None:
        tell(patch_sentence(outcome.patch, outcome.shown[0].column, outcome.shown[0].name))
    if outcome.deployed:
        out_console.print(deployed_table(outcome.deployed))
    if outcome.timing is not None:
        dense, fast = outcome.timing["latency_ms_control"], outcome.timing["latency_ms"]
        tell(f"Latency: {dense:.2f} ms dense, {fast:.2f} ms accelerated")
        if (small := outcome.timing["latency_ms_compacted"]) is not None:
            both = outcome.timing["latency_ms_compacted_accelerated"]
            tell(f"Compacted: {small:.2f} ms, {both:.2f} ms accelerated")
    if outcome.checks is not None:
        out_console.print(checks_table(outcome.checks))
    done = "Finished earlier" if outcome.was_finished else "Written"
    for file in (outcome.file, write_evaluation_page(outcome.file.parent, outcome.shown)):
        tell(f"{done}: {file}")


def _show_corruptions(out: Path, summary: CorruptionSummary) -> None:
    out_console.print(corruptions_table(summary))
    for sentence in summary.sentences():
        tell(sentence)
    for file in (out / TABLE, *write_corruption_plots(out, summary)):
        tell(f"Written: {file}")


def _tell(outcome: StageOutcome) -> None:
    """Say what was made, or that it was there, and where."""
    if outcome.summary:
        tell(outcome.summary)
    done = "Finished earlier" if outcome.was_finished else "Written"
    for file in outcome.files:
        tell(f"{done}: {file}")
