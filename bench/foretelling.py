"""Does a module's sensitivity foretell what pruning it costs?

    python -m bench.foretelling runs/allocations/resnet20-0 runs/allocations/vgg16-bn-0

of finished runs with filters and the allocation `mrs`, such as `bench.allocations` leaves. Of each channel group of the
unpruned model half of the filters is dropped alone, those of the lowest scores and without fine-tuning; the damage is
how far the loss on fixed attacked training images rises. Printed is, over the groups of a model, Spearman's rank
correlation of the damage with what ratios could follow: the sensitivity (exact and to first order, the largest of a
group's modules), the filters of a group, and its share of the multiply-accumulates.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import nn

from bench.scripts import Row, command_line, print_row
from prunekit.attacks import attack_named
from prunekit.pipeline.allocation import read_sensitivities
from prunekit.pipeline.checkpoint import open_checkpoint
from prunekit.pipeline.run_folder import RunFolder
from prunekit.prune import ChannelGroups, MaskRule, apply_masks, channel_groups, count_costs, score_model
from prunekit.prune.sensitivity import Attacked, Sensitivity
from prunekit.task import ModelSpec, Task, task_of
from prunekit.task_data import HasTrainingPart
from prunekit.training.data import ImagesOnDisk, TrainingData, as_floats, seeded

_HALF = 50.0


def foretold(folder: RunFolder, images: int) -> Row:
    """Return the correlations of one run's unpruned model."""
    unit = folder.read_json("units/ratio_0.json")
    task = task_of(ModelSpec(**unit["model"]["spec"]))
    model = open_checkpoint(folder.root / unit["model"]["path"], task).model.eval()
    config = folder.config()
    data = task.open_data(Path(config["train_data"]), config["image_size"], config["grayscale"], config["train_limit"])
    training = ImagesOnDisk(data.training() if isinstance(data, HasTrainingPart) else data)
    x = data[0].image[None]
    found = sensitivities_of(folder)
    groups, attacked = channel_groups(model, x), list(attacked_images(model, task, training, images))
    costs = {row.name: row.macs for row in count_costs(model, x).layers}
    before, damages, about = loss_of(model, attacked), [], []
    for layers in groups.groups:
        pruned = half_pruned(model, groups, layers)
        if pruned is None:
            continue
        damages.append(loss_of(pruned, attacked) - before)
        about.append({
            "exact": max(found[layer].value for layer in layers),
            "first order": max(found[layer].first_order for layer in layers),
            "filters": float(len(torch.unique(groups.units[layers[0]]))),
            "share of MACs": float(sum(costs[layer] for layer in layers)),
        })  # fmt: skip
    ranks = {name: float(spearmanr([row[name] for row in about], damages).statistic) for name in about[0]}
    return {"run": folder.root.name, "groups": len(damages), "images": images, "damage": damages, "rank with": ranks}


def sensitivities_of(folder: RunFolder) -> Mapping[str, Sensitivity]:
    """Return the run's sensitivities by module."""
    (path,) = (folder.root / "stages").glob("sensitivity-*/sensitivities.csv")
    return read_sensitivities(path)[0]


def half_pruned(model: nn.Module, groups: ChannelGroups, layers: Sequence[str]) -> nn.Module | None:
    """Drop half of the filters of one channel group; None where none of it may go."""
    scores = score_model(model, "scaled")
    ratios = {layer: _HALF if layer in layers else 0.0 for layer in scores}
    rule = MaskRule(0.0, "filter", groups=groups, ratios=ratios)
    masks, pruned = rule(scores), copy.deepcopy(model)
    if all(bool(mask.all()) for mask in masks.values()):
        return None
    apply_masks(pruned, masks, groups)
    return pruned


def attacked_images(model: nn.Module, task: Task, data: TrainingData, images: int) -> Iterator[Attacked]:
    """Yield batches of seeded training images that PGD attacked on the unpruned model, with their losses."""
    order = torch.randperm(len(data), generator=seeded(0, "foretelling", 0))[:images].tolist()
    for number, (x, targets) in enumerate(data.batches(order, 64, 0)):
        losses, generator = task.attack_losses(targets), seeded(0, "attack for foretelling", number)
        yield attack_named("hydra")(model, as_floats(x), losses, generator), losses.total


@torch.no_grad()
def loss_of(model: nn.Module, attacked: Sequence[Attacked]) -> float:
    """Return the mean loss on attacked images."""
    losses = torch.cat([loss(model(x)) for x, loss in attacked])
    return float(losses.mean())


def main(argv: Sequence[str]) -> None:
    """Print a row for each run."""
    parser = command_line(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--images", type=int, default=512)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for path in args.runs:
        print_row(foretold(RunFolder(path), args.images))


if __name__ == "__main__":
    main(sys.argv[1:])
