"""Does drawing the attack from a pool make a detector more robust than training against one? At equal passes.

    python -m bench.adaptive --out runs/adaptive

On images that are rendered for each seed, a narrow YOLOv3-tiny is trained clean; from there `pgd-at` goes on against
one attack, against another one, and against the pool of both. All attacks take as many steps, so equally many training
steps are equally many forward and backward passes. Each model's AP is taken clean, under the attacks of training, under
more thorough searches of the same balls, and under what no training has seen: a ball of twice the radius, another loss
(that objects vanish), and corruptions. Given again, the command goes on where it stopped. The last lines are two tables
over the seeds: mean ± standard deviation of each model, and of what the pool gains on each fixed attack, seed by seed.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.scripts import Row, command_line, one_sentence, print_row
from prunekit.attacks import PRESETS, Attack, AttackLosses, PgdConfig, pgd, register_attack
from prunekit.attacks.presets import EPS, EPS_L2, PAPER
from prunekit.cli.ending import error_console
from prunekit.console import ConsoleProgress
from prunekit.errors import InputError
from prunekit.experiments.rendered import Rendered, prepare_rendered
from prunekit.pipeline import Progress
from prunekit.pipeline.command_config import EvaluateStage, TrainStage
from prunekit.pipeline.commands import train_stage
from prunekit.pipeline.evaluate_command import evaluate_stage
from prunekit.training.config import TrainConfig
from prunekit.training.pool import is_pool, pool_names


@dataclass(frozen=True)
class Vanish:
    """PGD that makes a detector lose its objects, whatever happens to the rest of the loss; an `Attack`."""

    config: PgdConfig

    def __call__(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return images in which less is found."""
        return pgd(model, x, losses.components["vanish"], self.config, generator)


#: Registered here: the paper's search in the L2 ball, in an L∞ ball of twice the radius, and with another loss.
OF_BENCH: dict[str, Attack] = {
    "paper-l2": PgdConfig(EPS_L2, step_size=EPS_L2 * PAPER.step_size / EPS, steps=PAPER.steps, norm="l2"),
    "paper-wide": PAPER.with_eps(2 * EPS),
    "paper-vanish": Vanish(PAPER),
}
#: What training meets, by what rows call it.
ARMS = {"fixed linf": "paper", "fixed l2": "paper-l2", "pool": "pool:paper,paper-l2"}
#: The attacks of training, more thorough searches of the same balls, and attacks from outside.
ATTACKS = ("paper", "paper-l2", "standard", "standard-l2", "paper-wide", "paper-vanish")
CORRUPTIONS = "gaussian_noise:3,defocus_blur:3,fog:3,jpeg_compression:3"
CLEAN, CORRUPTED = "clean", "corrupted"
# Forward and backward passes of a step of pgd-at beside those of its attack: on the clean and on the attacked images.
_OF_TRAINING = 2


def passes_a_step(train_attack: str) -> int:
    """Return the forward and backward passes of a training step.

    Raises:
        InputError: The attacks of a pool do not take equally many.
    """
    names = pool_names(train_attack) if is_pool(train_attack) else (train_attack,)
    steps = {attack.steps for name in names if isinstance(attack := PRESETS[name], PgdConfig)}
    if len(steps) != 1:
        raise InputError(f"Expected attacks of equally many steps in {train_attack}, got {sorted(steps)}.")
    return _OF_TRAINING + steps.pop()


def trained(args: argparse.Namespace, rendered: Rendered, seed: int, arm: str, progress: Progress) -> tuple[Path, int]:
    """Train one model on, or find it; return its file and the passes that it took."""
    inputs = args.out / "inputs" / str(seed)
    prepare_rendered(rendered, inputs, seed, progress)
    settings = rendered.settings(inputs)
    knobs = TrainConfig(
        epochs=args.epochs, max_steps=args.max_steps, learning_rate=args.learning_rate, seed=seed,
        sizes=(rendered.image_size,),
    )  # fmt: skip
    stage = TrainStage(
        **{name: settings[name] for name in ("model", "width", "weights", "image_size")}, data=settings["train_data"],
        objective="pgd-at", train_attack=ARMS[arm], pretrain=knobs, seed=seed, threads=args.threads,
        out=args.out / "trained" / f"{arm.replace(' ', '-')}-{seed}",
    )  # fmt: skip
    train_stage(stage, progress)
    with (stage.out / "losses.csv").open() as file:
        steps = sum(1 for _ in csv.DictReader(file))
    return stage.out / "model.safetensors", steps * passes_a_step(ARMS[arm])


def figures(args: argparse.Namespace, weights: Path, data: Path, seed: int, progress: Progress) -> dict[str, float]:
    """Return a model's AP by what it meets, on images of the size that it was trained on."""
    stage = EvaluateStage(
        weights=weights, data=data, attack=ATTACKS, corruptions=CORRUPTIONS, seed=seed, threads=args.threads,
        image_size=args.image_size, out=args.out / "evaluated" / weights.parent.name,
    )  # fmt: skip
    found = evaluate_stage(stage, progress)
    assert found.corruptions is not None
    by_case = {CLEAN if name == "none" else name: case["ap"] for name, case in found.cases.items()}
    return {name: value or 0.0 for name, value in {**by_case, CORRUPTED: found.corruptions.mean}.items()}


def row_of(args: argparse.Namespace, rendered: Rendered, seed: int, arm: str, progress: Progress) -> Row:
    """Return the row of one model: what it was trained against, at how many passes, and its AP by what it meets."""
    weights, passes = trained(args, rendered, seed, arm, progress)
    data = rendered.settings(args.out / "inputs" / str(seed))["data"]
    about = {"seed": seed, "trained against": arm, "train_attack": ARMS[arm], "passes": passes}
    return {**about, "ap": figures(args, weights, data, seed, progress)}


def tables(rows: Sequence[Row]) -> str:
    """Return Markdown tables: the AP of each arm, and what the pool gains on each fixed one, seed by seed."""
    by_arm = {arm: {row["seed"]: row["ap"] for row in rows if row["trained against"] == arm} for arm in ARMS}
    names = [*rows[0]["ap"]]
    first = [[arm, *(_spread([ap[name] for ap in found.values()]) for name in names)] for arm, found in by_arm.items()]
    others = [arm for arm in ARMS if arm != "pool"]
    second = [[f"pool - {arm}", *_gains(by_arm["pool"], by_arm[arm], names)] for arm in others]
    return f"{_table('trained against', names, first)}\n\n{_table('AP gained', names, second)}"


def _gains(
    pool: Mapping[int, Mapping[str, float]], fixed: Mapping[int, Mapping[str, float]], names: Sequence[str]
) -> list[str]:
    return [_spread([pool[seed][name] - fixed[seed][name] for seed in pool if seed in fixed], "+") for name in names]


def _spread(values: Sequence[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.3f} ± {deviation:.3f}"


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[title, *names], ["---"] * (1 + len(names)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Read the options."""
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything")
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2), help="separated by commas (default: 0,1,2)")
    parser.add_argument("--images", type=int, default=1200, help="rendered to train on (default: %(default)s)")
    parser.add_argument("--val-images", type=int, default=150, help="rendered to evaluate on (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=128, help="side in pixels (default: %(default)s)")
    parser.add_argument("--width", type=float, default=0.25, help="of YOLOv3-tiny (default: %(default)s)")
    parser.add_argument("--clean-epochs", type=int, default=24, help="before all of it (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="of adversarial training (default: %(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, default=6e-3, help="of adversarial training (default: %(default)s)"
    )
    parser.add_argument("--max-steps", type=int, help="stop adversarial training after N steps (default: never)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    return parser.parse_args(argv)


def _seeds(text: str) -> tuple[int, ...]:
    """Read "0,1,2"; argparse turns the error into its sentence."""
    try:
        found = tuple(map(int, text.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 0 or len({*found}) < len(found):
        raise argparse.ArgumentTypeError(f"expected different seeds from 0, as in 0,1,2, got {text!r}")
    return found


def main(argv: Sequence[str]) -> None:
    """Print a row for each seed and arm, then the tables."""
    args, rows = parsed(argv), list[Row]()
    for name, attack in OF_BENCH.items():
        if name not in PRESETS:
            register_attack(name, attack)
    rendered = Rendered(
        num_train=args.images, num_val=args.val_images, image_size=args.image_size, width=args.width,
        epochs=args.clean_epochs,
    )  # fmt: skip
    with one_sentence(), ConsoleProgress(error_console) as progress:
        for seed in args.seeds:
            for arm in ARMS:
                rows.append(row_of(args, rendered, seed, arm, progress))
                print_row(rows[-1])
    print(tables(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
