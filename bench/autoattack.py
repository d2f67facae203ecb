"""Does AutoAttack find what another implementation finds? Robust accuracy after each part, here and in torchattacks.

    pip install --no-deps torchattacks==3.5.1   # its own requirements pin an old requests, which it does not need here
    python -m bench.autoattack --weights runs/net/model.safetensors --data cifar10 --images 200

torchattacks' class AutoAttack takes ten gradient steps where the published standard has 100, so its four attacks are
chained by hand, with equal settings. One JSON line for each implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.scripts import command_line, one_sentence, print_row
from prunekit.attacks import AutoAttackConfig, classification_losses
from prunekit.errors import InputError
from prunekit.pipeline.checkpoint import open_checkpoint, spec_of
from prunekit.task import task_of
from prunekit.training.data import load_batches

Accuracies = dict[str, float]


def ours(model: nn.Module, x: Tensor, labels: Tensor, config: AutoAttackConfig, seed: int = 0) -> Accuracies:
    """Return the share of images that are classified correctly after each part."""
    generator = torch.Generator(x.device).manual_seed(seed)
    after = config.after_each_part(model, x, classification_losses(labels), generator)
    return {part: float(_is_right(model, x_adv, labels).double().mean()) for part, x_adv in after.items()}


def theirs(model: nn.Module, x: Tensor, labels: Tensor, config: AutoAttackConfig, seed: int = 0) -> Accuracies:
    """Return the same of torchattacks; ImportError where it is not installed."""
    shares, remaining = {}, _is_right(model, x, labels).nonzero()[:, 0]
    for part, attack in _their_parts(model, config, int(model(x[:1]).shape[1]), seed):
        if len(remaining):
            x_adv = attack(x[remaining], labels[remaining])
            remaining = remaining[_is_right(model, x_adv, labels[remaining])]
        shares[part] = len(remaining) / len(x)
    return shares


def _their_parts(model: nn.Module, config: AutoAttackConfig, classes: int, seed: int) -> Iterator[tuple[str, Any]]:
    import torchattacks as peer

    shared = {"eps": config.eps, "norm": "Linf", "seed": seed}
    targeted = {"n_classes": min(classes, config.targets + 1), **shared}
    yield "apgd_ce", peer.APGD(model, steps=config.steps, loss="ce", **shared)
    yield "apgd_t", peer.APGDT(model, steps=config.steps, **targeted)
    yield "fab_t", peer.FAB(model, steps=config.steps, multi_targeted=True, **targeted)
    yield "square", peer.Square(model, n_queries=config.queries, **shared)


def _is_right(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        is_right: Tensor = model(x).argmax(dim=1) == labels
    return is_right


IMPLEMENTATIONS = {"prunekit": ours, "torchattacks": theirs}


def main() -> None:
    """Attack a classifier that prunekit trained, on images of a data set."""
    parser = command_line(__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="model.safetensors of prunekit train")
    parser.add_argument("--data", type=Path, required=True, help="what prunekit evaluate takes")
    parser.add_argument("--images", type=int, default=200, help="how many, evenly spaced over the data set")
    parser.add_argument("--eps", type=float, default=8 / 255, help="radius in L∞, for pixels in [0, 1]")
    parser.add_argument("--by", default=",".join(IMPLEMENTATIONS), help="implementations to run")
    options = parser.parse_args()
    with one_sentence():
        if (spec := spec_of(options.weights)) is None:
            raise InputError(f"Expected a model that prunekit trained, got {options.weights}.")
    task = task_of(spec)
    data = task.open_data(options.data, None, False, None)
    model = open_checkpoint(options.weights, task).model
    rows = torch.linspace(0, len(data) - 1, options.images).long().tolist()
    (batch,) = load_batches(data, options.images, order=rows)
    config = AutoAttackConfig(options.eps)
    for name in options.by.split(","):
        found = IMPLEMENTATIONS[name](model, batch.images, batch.targets, config)
        clean = float(_is_right(model, batch.images, batch.targets).double().mean())
        print_row({"by": name, "images": options.images, "clean": clean, **found})


if __name__ == "__main__":
    main()
