"""What does optimizing scores cost, beside one forward and one backward pass of the same model?

    python -m bench.straight_through --model yolov3 --batch-size 2

In turn: a plain training pass, and one with masks and score gradients, whose scores have changed since the last one,
so that its top-k is included. `masks_ms` is that top-k alone, which one optimizer step needs once, however many
passes an attack makes. The optimizer is timed in neither.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from prunekit.environment import describe_environment
from prunekit.prune import STRUCTURES, MaskRule, StraightThrough, channel_groups, score_model
from prunekit.task import ModelSpec, models
from prunekit.timing import time_in_turn


def main() -> None:
    """Print JSON lines: the environment, then one row a structure."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    print(json.dumps({"environment": describe_environment(), "threads": arguments.threads}), flush=True)
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
                "plain": partial(with_gradients, partial(train_pass, model, x)),
                "straight-through": partial(with_gradients, partial(scored_pass, pruning, x)),
                "masks": partial(rule, scores),
            }
            times = time_in_turn(calls, arguments.runs)
        row = {
            "model": arguments.model,
            "width": arguments.width,
            "image_size": arguments.image_size,
            "batch_size": arguments.batch_size,
            "structure": structure,
            "ratio_percent": arguments.ratio,
            "plain_ms": times["plain"].median_ms,
            "straight_through_ms": times["straight-through"].median_ms,
            "masks_ms": times["masks"].median_ms,
            "ratio": times["straight-through"].median_ms / times["plain"].median_ms,
        }
        print(json.dumps(row), flush=True)


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


def with_gradients(call: Callable[[], None]) -> None:
    """Let a call differentiate although timing switches gradients off."""
    with torch.inference_mode(False):
        call()


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(models()), default="yolov3")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=416)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--ratio", type=float, default=90.0)
    parser.add_argument("--structures", default=",".join(STRUCTURES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
