"""What does optimizing scores cost, beside one forward and one backward pass of the same model?

    python -m bench.straight_through --model yolov3 --batch-size 2

In turn: a plain training pass, and one with masks and score gradients, whose scores have changed since the last one,
so that its top-k is included. `masks_ms` is that top-k alone, which one optimizer step needs once, however many
passes an attack makes. The optimizer is timed in neither.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench.scripts import add_net_options, begin, command_line, net_facts, print_row, with_gradients
from prunekit.prune import STRUCTURES, MaskRule, StraightThrough, channel_groups, score_model
from prunekit.task import ModelSpec
from prunekit.timing import time_in_turn


def main() -> None:
    """Print JSON lines: the environment, then one row a structure."""
    parser = command_line(__doc__)
    add_net_options(parser, "yolov3", batch_size=2, runs=5)
    parser.add_argument("--ratio", type=float, default=90.0)
    parser.add_argument("--structures", default=",".join(STRUCTURES))
    arguments = parser.parse_args()
    begin(arguments.threads)
    torch.manual_seed(0)
    spec = ModelSpec(arguments.model, {"num_classes": 80, "width": arguments.width})
    model = spec.build()
    groups = channel_groups(model, torch.zeros(1, 3, 64, 64))
    scores = score_model(model, "scaled")
    x = torch.rand(arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    for structure in arguments.structures.split(","):
        rule = MaskRule(arguments.ratio, structure, groups=groups)
        pruned = copy.deepcopy(model)
        with StraightThrough(pruned, scores, rule) as pruning:
            calls: dict[str, Callable[[], object]] = {
                "plain": with_gradients(partial(train_pass, model, x)),
                "straight-through": with_gradients(partial(scored_pass, pruning, x)),
                "masks": partial(rule, scores),
            }
            times = time_in_turn(calls, arguments.runs)
        row = {
            **net_facts(arguments),
            "structure": structure,
            "ratio_percent": arguments.ratio,
            "plain_ms": times["plain"].median_ms,
            "straight_through_ms": times["straight-through"].median_ms,
            "masks_ms": times["masks"].median_ms,
            "ratio": times["straight-through"].median_ms / times["plain"].median_ms,
        }
        print_row(row)


def train_pass(model: nn.Module, x: Tensor) -> None:
    """One forward and backward pass for every parameter that trains."""
    model.zero_grad()
    outputs: tuple[Tensor, ...] = model(x)
    torch.stack([head.square().mean() for head in outputs]).sum().backward()  # type: ignore[no-untyped-call]


def scored_pass(pruning: StraightThrough, x: Tensor) -> None:
    """The same with scores that have changed, if only by name."""
    for parameter in pruning.parameters():
        parameter.detach().view(-1)[:1].add_(0.0)
    train_pass(pruning.model, x)


if __name__ == "__main__":
    main()
