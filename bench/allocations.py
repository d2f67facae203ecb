"""Does it matter where is pruned? Allocations at one budget, on robust classifiers, with exactly the same fine-tuning.

    python -m bench.allocations --data cifar10/ --models resnet20,vgg16-bn --seeds 0,1,2 --out runs/allocations

Each model is trained adversarially once a seed (`prunekit run`); then filters are pruned to the budget by each
allocation and fine-tuned. Rows are clean accuracy, accuracy under PGD-20 at eps 8/255 and under the further attacks of
`--attacks`, multiply-accumulates, and the milliseconds of the compacted models of a run, accelerated and timed in turn.
Given again, the command goes on where it stopped and times anew; models, seeds and attacks that are asked for later
join the rows that are there. The last lines are a table of all of them: mean ± standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunekit
from bench.scripts import Row, read_rows
from prunekit.attacks import PRESETS, register_attack
from prunekit.attacks.presets import HYDRA
from prunekit.cli.ending import error_console
from prunekit.console import ConsoleProgress
from prunekit.files import write_text
from prunekit.pipeline import Progress, RunConfig, RunFolder, make_config, run
from prunekit.pipeline.checkpoint import open_checkpoint
from prunekit.pipeline.command_config import EvaluateStage, TrainStage
from prunekit.pipeline.commands import train_stage
from prunekit.pipeline.evaluate_command import evaluate_stage
from prunekit.pipeline.variants import AS_GIVEN, Unit
from prunekit.prune import ALLOCATIONS
from prunekit.task import ModelSpec, task_of
from prunekit.timing import time_in_turn
from prunekit.training.config import PRE_TRAINING

PGD20 = "pgd20"
_BATCH_SIZE, _TIMED_RUNS = 128, 50
_UNPRUNED = {True: "unpruned, before adversarial training", False: "unpruned"}
# What rows are of.
_ABOUT = ("model", "seed", "allocation")


def training_attack(steps: int) -> str:
    """Register HYDRA's attack with so many steps, together as long as its own; return its name."""
    name = f"hydra-{steps}"
    if name not in PRESETS:
        register_attack(name, replace(HYDRA, steps=steps, step_size=HYDRA.step_size * HYDRA.steps / steps))
    return name


def clean_training(args: argparse.Namespace, model: str, seed: int) -> TrainStage:
    """Return the training of a model and seed on images as they are, which adversarial training then begins from.

    Small networks without shortcuts can stay at chance for many epochs where they meet attacked images from the start.
    """
    return TrainStage(
        model=model, width=args.width, seed=seed, data=args.data, objective="clean", limit=args.train_limit,
        pretrain=PRE_TRAINING.updated(epochs=args.clean_epochs, batch_size=_BATCH_SIZE), threads=args.threads,
        out=args.out / "clean" / f"{model}-{seed}",
    )  # fmt: skip


def run_of(args: argparse.Namespace, model: str, seed: int, weights: Path | None) -> RunConfig:
    """Return the run of one model and seed."""
    return make_config(
        model=model, width=args.width, seed=seed, data=args.data, train_data=args.data, weights=weights,
        out=args.out / f"{model}-{seed}",
        structure=args.structure, budget=args.budget, allocation=args.allocations, objective=args.objective,
        train_attack=training_attack(args.train_steps), attack=PGD20,
        pretrain_epochs=args.pretrain_epochs, finetune_epochs=args.finetune_epochs,
        max_steps=args.max_steps, train_batch_size=_BATCH_SIZE, batch_size=64, limit=args.limit,
        train_limit=args.train_limit, threads=args.threads,
    )  # fmt: skip


def rows_of(config: RunConfig, attacks: Sequence[str], limit: int | None, progress: Progress) -> list[Row]:
    """Run what is left of one model and seed; return a row for each allocation, and for the unpruned model.

    `limit` is how many of the test images the further attacks see: AutoAttack takes hours where PGD-20 takes minutes.
    """
    folder, rows = run(config, progress), []
    milliseconds = deployed_milliseconds(folder, config)
    for unit in dict.fromkeys(config.units):
        done = json.loads(folder.unit(unit).read_text())
        row: Row = done["row"]
        found = {"model": config.model, "seed": config.seed}
        found["allocation"] = unit.variant.allocation if unit.is_pruned else _UNPRUNED[unit.variant == AS_GIVEN]
        found |= {"clean": row["accuracy"], PGD20: row["attacked_accuracy"], "kept_macs": row["kept_macs"]}
        found["ms"] = milliseconds[unit.stem]
        if attacks:
            stage = EvaluateStage(
                weights=folder.root / done["model"]["path"], data=config.data, attack=tuple(attacks),
                batch_size=config.batch_size, limit=limit, threads=config.threads, seed=config.seed,
                out=folder.root / "attacks" / unit.stem,
            )  # fmt: skip
            cases = evaluate_stage(stage, progress).cases
            found |= {attack: cases[attack]["accuracy"] for attack in attacks}
        rows.append(found)
    return list({row["allocation"]: row for row in rows}.values())


def deployed_milliseconds(folder: RunFolder, config: RunConfig) -> dict[str, float]:
    """Time all models of a run in turn on one image: accelerated, and without the filters that they lost."""
    calls, threads = dict[str, Callable[[], object]](), torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        for unit in dict.fromkeys(config.units):
            model = deployed(folder, unit)
            size = config.image_size or folder.read_json(f"units/{unit.stem}.json")["row"]["image_size"]
            x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
            calls[unit.stem] = partial(prunekit.accelerate(model, x), x)
        return {stem: timing.median_ms for stem, timing in time_in_turn(calls, _TIMED_RUNS, warm_up=5).items()}
    finally:
        torch.set_num_threads(threads)


def deployed(folder: RunFolder, unit: Unit) -> nn.Module:
    """Return a unit's compacted model, or the model itself where nothing was cut."""
    if folder.compacted(unit).is_file():
        return prunekit.load(folder.compacted(unit))
    found = folder.read_json(f"units/{unit.stem}.json")["model"]
    return open_checkpoint(folder.root / found["path"], task_of(ModelSpec(**found["spec"]))).model.eval()


def keep_rows(path: Path, rows: Sequence[Row]) -> list[Row]:
    """Write rows into a file, each into that of its model, seed and allocation if there is one; return all of them."""
    kept: dict[tuple[Any, ...], Row] = {}
    for row in (*read_rows(path), *rows):
        about = tuple(row[name] for name in _ABOUT)
        kept[about] = kept.get(about, {}) | row
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept.values()))
    return list(kept.values())


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of the means and standard deviations over the seeds, of what all rows have."""
    figures = [name for name in rows[0] if name not in _ABOUT and all(name in row for row in rows)]
    lines = [f"| model | allocation | {' | '.join(figures)} |", "|---" * (2 + len(figures)) + "|"]
    for model, allocation in dict.fromkeys((row["model"], row["allocation"]) for row in rows):
        group = [row for row in rows if (row["model"], row["allocation"]) == (model, allocation)]
        cells = [_spread([float(row[name]) for row in group]) for name in figures]
        lines.append(f"| {model} | {allocation} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4g} ± {deviation:.2g}"


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m bench.allocations", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="images of classes, with a training and a test part")
    parser.add_argument("--models", default="resnet20,vgg16-bn")
    parser.add_argument("--width", type=float, default=1.0, help="channels relative to the published networks'")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budget", default="macs=50%")
    parser.add_argument("--structure", default="filter")
    parser.add_argument("--allocations", default="mrs,uniform,global,latency", help=f"of {', '.join(ALLOCATIONS)}")
    parser.add_argument("--attacks", default="autoattack", help='beside PGD-20, of the presets; "" for none')
    parser.add_argument("--objective", default="trades")
    parser.add_argument("--train-steps", type=int, default=HYDRA.steps, help="of the attack in training, at eps 8/255")
    parser.add_argument("--clean-epochs", type=int, default=0, help="on images as they are, before all others")
    parser.add_argument("--pretrain-epochs", type=int, default=10)
    parser.add_argument("--finetune-epochs", type=int, default=3)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--limit", type=int, help="evaluate on the first N test images, and train on as many")
    parser.add_argument("--train-limit", type=int, help="train on the first N images; by default those of --limit")
    parser.add_argument("--attack-limit", type=int, help="test images for --attacks; by default those of --limit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Write rows.jsonl, and print the table."""
    args = parsed(argv)
    attacks, limit = [name for name in args.attacks.split(",") if name], args.attack_limit or args.limit
    with ConsoleProgress(error_console) as progress:
        for seed in args.seeds.split(","):
            for model in args.models.split(","):
                weights = None
                if args.clean_epochs:
                    weights = train_stage(clean_training(args, model, int(seed)), progress).files[0]
                found = rows_of(run_of(args, model, int(seed), weights), attacks, limit, progress)
                rows = keep_rows(args.out / "rows.jsonl", found)
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
