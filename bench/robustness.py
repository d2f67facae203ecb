"""Does robust pruning work? AP, clean and attacked, after every step of the pipeline, on the demo's images over seeds.

    python -m bench.robustness --seeds 0,1,2 --out runs/robustness

Each seed renders its own data, trains a detector from scratch and pre-trains it robustly once; all variants start
there. Evaluated, clean and under the report's attack, are the detector as it was given, the pre-trained one, and for
each structure and ratio of `--cells` and each way of pruning the detector before and after fine-tuning. With
`--equal-passes` one-shot pruning is fine-tuned a second time, for as many epochs more as the optimization of scores
took: so both have seen the images equally often.

Each row goes to rows.jsonl when it is there. Given again, the command goes on where it stopped. The last lines are a
table: mean ± standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bench.scripts import Row, append_rows, begin, command_line, print_row, read_rows, whole_lines
from prunekit.cli.ending import error_console
from prunekit.console import ConsoleProgress
from prunekit.demo import DemoConfig, prepare_demo
from prunekit.detection import CocoDataset
from prunekit.environment import thread_count
from prunekit.errors import InputError
from prunekit.evaluation.evaluate import Subject, evaluate_cases
from prunekit.files import write_text
from prunekit.kept_images import KeptImages
from prunekit.pipeline import Progress, RunConfig, SilentProgress
from prunekit.pipeline.checkpoint import Checkpoint, Training, Workspace, open_checkpoint, requested_spec
from prunekit.pipeline.results import data_digest
from prunekit.pipeline.steps import finetune, make_training, pretrain, prune_one_shot, prune_optimized, score
from prunekit.pipeline.store import WorkStore
from prunekit.prune import STRUCTURES, ChannelGroups, MaskRule, channel_groups, count_costs
from prunekit.task import task_of

ATTACK = "paper"
# A row's figure and its heading; the first four are of every detector, the others of pruned ones.
FIGURES = {
    "ap": "AP",
    "ap50": "AP50",
    "attacked_ap": "attacked AP",
    "attacked_ap50": "attacked AP50",
    "churn": "churn",
    "kept_weights_share": "weights left",
    "kept_macs_share": "MACs left",
}


@dataclass(frozen=True)
class Cell:
    """What is dropped, and how many percent of it."""

    structure: str
    ratio: float


@dataclass(frozen=True)
class Step:
    """What was done to a detector that is evaluated; rows of one step and several seeds make a line of the table."""

    step: str
    structure: str = "none"
    ratio: float = 0.0
    pruning: str = "none"
    finetune_epochs: int = 0


@dataclass(frozen=True)
class Start:
    """What one seed's variants share: settings, data, and the detector before and after robust pre-training."""

    config: RunConfig
    dataset: CocoDataset
    training: Training
    workspace: Workspace
    given: Checkpoint
    robust: Checkpoint
    groups: ChannelGroups


class Rows:
    """The measured rows, in a file that only grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        write_text(path, "".join(whole_lines(path)))
        self.rows = [row for row in read_rows(path) if "step" in row]

    def find(self, seed: int, step: Step, model: str) -> Row | None:
        """Return the row of this very detector."""
        wanted = {"seed": seed, "model": model, **asdict(step)}
        return next((row for row in self.rows if row.items() >= wanted.items()), None)

    def add(self, row: Row) -> None:
        """Write a row down and print it."""
        print_row(row)
        self.rows += append_rows(self._path, [row])


def main() -> None:
    """Measure what is not there yet, then print the table; exit code 2 after bad input."""
    try:
        measure(parse_arguments())
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def measure(arguments: argparse.Namespace) -> None:
    """Measure each seed's detectors and print a table of all that was measured of these seeds."""
    with thread_count(arguments.threads):
        cells, seeds = parse_cells(arguments.cells), parse_numbers("--seeds", arguments.seeds)
        longer = parse_numbers("--longer", arguments.longer) if arguments.longer else ()
        begin(torch.get_num_threads())
        rows = Rows(arguments.out / "rows.jsonl")
        for seed in seeds:
            with ConsoleProgress(error_console) as progress:
                start = make_start(DemoConfig(arguments.out / f"seed-{seed}", seed), progress)
                measure_seed(start, cells, longer, arguments.equal_passes, rows)
        print(table([row for row in rows.rows if row["seed"] in seeds]))


def make_start(demo: DemoConfig, progress: Progress) -> Start:
    """Render, train from scratch, pre-train robustly, or find what is there."""
    config = prepare_demo(demo, progress)
    assert config.train_data is not None
    dataset, train_dataset = (CocoDataset.open(path, config.image_size) for path in (config.data, config.train_data))
    dataset.kept = KeptImages()
    digest = data_digest(train_dataset, progress)
    training = make_training(config.objective, config.train_attack, train_dataset, digest, progress)
    task = task_of(requested_spec(config.model, config.width)).for_data(dataset)
    given = open_checkpoint(str(config.weights), task)
    workspace = Workspace(WorkStore(demo.out / "stages"), progress)
    robust = pretrain(workspace, given, training, config.pretrain)
    groups = channel_groups(robust.model, torch.zeros(1, 3, dataset.image_size, dataset.image_size))
    return Start(config, dataset, training, workspace, given, robust, groups)


def measure_seed(
    start: Start, cells: tuple[Cell, ...], longer: tuple[int, ...], equal_passes: bool, rows: Rows
) -> None:
    """Evaluate one seed's detector after every step of every variant."""
    evaluate_step(start, Step("as given"), start.given, None, rows)
    evaluate_step(start, Step("pre-trained"), start.robust, None, rows)
    short = start.config.finetune.epochs
    for cell in cells:
        for pruning in ("one-shot", "optimized"):
            pruned, churn = prune(start, cell, pruning)
            where = Step("pruned", cell.structure, cell.ratio, pruning)
            evaluate_step(start, where, pruned, churn, rows)
            more = (short + start.config.optimize.epochs,) if equal_passes and pruning == "one-shot" else ()
            for epochs in (short, *more, *longer):
                knobs = start.config.finetune.updated(epochs=epochs)
                groups = start.groups if pruned.drops_filters else None
                tuned = finetune(start.workspace, pruned, start.training, knobs, groups)
                evaluate_step(start, replace(where, step="fine-tuned", finetune_epochs=epochs), tuned, churn, rows)


def prune(start: Start, cell: Cell, pruning: str) -> tuple[Checkpoint, float]:
    """Return the pre-trained detector, pruned, and the churn of its masks."""
    rule = MaskRule(cell.ratio, cell.structure, groups=start.groups)
    config = start.config
    scores, scores_sha256 = score(start.workspace, start.robust, config.scores[0], config, start.training)
    if pruning == "one-shot":
        return prune_one_shot(start.workspace, start.robust, scores, scores_sha256, rule), 0.0
    return prune_optimized(start.workspace, start.robust, scores, scores_sha256, rule, start.training, config.optimize)


def evaluate_step(start: Start, step: Step, artifact: Checkpoint, churn: float | None, rows: Rows) -> None:
    """Add a detector's figures to the rows, unless they are there."""
    config = start.config
    if rows.find(config.seed, step, artifact.sha256) is not None:
        return
    start.workspace.progress.message(f"seed {config.seed}: evaluating {_label(asdict(step))}")
    began = time.perf_counter()
    subject = Subject(artifact.model, artifact.task, start.dataset, config, SilentProgress())
    clean, attacked = (result.figures() for result in evaluate_cases(subject, [ATTACK]))
    row = {"seed": config.seed, **asdict(step), "model": artifact.sha256, "churn": churn, "images": len(start.dataset)}
    row |= {"ap": clean["ap"], "ap50": clean["ap50"]}
    row |= {"attacked_ap": attacked["ap"], "attacked_ap50": attacked["ap50"]}
    if artifact.masks is not None:
        x = torch.zeros_like(start.dataset[0].image[None])
        groups = start.groups if artifact.drops_filters else None
        costs = count_costs(artifact.model, x, artifact.masks, groups)
        kept = sum(layer.kept_weights for layer in costs.layers)
        row |= {"kept_weights": kept, "kept_weights_share": 1 - costs.sparsity}
        row |= {"kept_macs": costs.kept_macs, "kept_macs_share": costs.kept_macs / costs.macs}
    rows.add(row | {"seconds": time.perf_counter() - began})


def table(rows: list[Row]) -> str:
    """Return a line a step: mean ± standard deviation over the seeds, the newest row of each seed."""
    by_step: dict[Step, dict[int, Row]] = {}
    for row in rows:
        step = Step(**{name: row[name] for name in asdict(Step(""))})
        by_step.setdefault(step, {})[row["seed"]] = row
    lines = ["| step | seeds | " + " | ".join(FIGURES.values()) + " |", "|---" * (len(FIGURES) + 2) + "|"]
    for step, of_seeds in by_step.items():
        measured = list(of_seeds.values())
        cells = [_spread([row.get(name) for row in measured]) for name in FIGURES]
        lines.append(f"| {_label(asdict(step))} | {len(measured)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_cells(text: str) -> tuple[Cell, ...]:
    """Read "unstructured:90,filter:75"."""
    cells = []
    for part in text.split(","):
        structure, _, ratio = part.partition(":")
        if structure not in STRUCTURES or not ratio.replace(".", "", 1).isdigit() or not 0 < float(ratio) < 100:
            raise InputError(f"--cells: expected parts such as filter:75, of {', '.join(STRUCTURES)}, got {part!r}.")
        cells.append(Cell(structure, float(ratio)))
    return tuple(cells)


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Read "0,1,2"."""
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise InputError(f"{option}: expected whole numbers separated by commas, such as 0,1,2, got {text!r}.")
    return tuple(int(part) for part in parts)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"), help="folder for data, weights and rows")
    parser.add_argument("--seeds", default="0,1,2", help="of data and training")
    parser.add_argument("--cells", default="unstructured:90,filter:75", help="structure:ratio in percent")
    parser.add_argument("--longer", default="", help="more lengths of fine-tuning, in epochs: 12,24")
    parser.add_argument(
        "--equal-passes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also fine-tune one-shot pruning for the epochs that optimizing scores took",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def _label(step: Row) -> str:
    if step["structure"] == "none":
        return str(step["step"])
    epochs = step["finetune_epochs"]
    tuned = f", fine-tuned {epochs} epoch{'s' if epochs > 1 else ''}" if epochs else ""
    return f"{step['structure']} {step['ratio']:g} %, {step['pruning']}{tuned}"


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{spread}"


if __name__ == "__main__":
    main()
