"""A budget in milliseconds: as much of the model as runs in that time on this machine.

Layers are timed once and remembered in the cache folder; the result is measured, within 5 % of the budget.
"""

import argparse

import torch

import prunekit
from prunekit.classification import resnet50
from prunekit.prune import allocate, apply_masks, score_model, sparsity
from prunekit.timing import time_in_turn


def main() -> None:
    """Prune to a budget, and time what came out beside the unpruned model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=224, help="in pixels")
    parser.add_argument("--width", type=float, default=1.0, help="channels relative to ResNet-50's")
    parser.add_argument("--budget", default="latency=40%", help="such as latency=25ms (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    model = resnet50(width=options.width).eval()
    x = torch.rand(1, 3, options.image_size, options.image_size)
    scores = score_model(model, "magnitude")
    masks = allocate(model, scores, budget=options.budget, example_input=x, allocation="latency")
    kept = {name: 100 * mask.float().mean().item() for name, mask in masks.items()}
    low, high = min(kept, key=lambda name: kept[name]), max(kept, key=lambda name: kept[name])
    print(f"{options.budget} leaves {100 - 100 * sparsity(masks):.0f} % of the weights:")
    print(f"{kept[high]:.0f} % in {high}, {kept[low]:.0f} % in {low}")

    unpruned = prunekit.accelerate(model, x)
    apply_masks(model, masks)
    pruned = prunekit.accelerate(model, x)
    times = time_in_turn({"unpruned": lambda: unpruned(x), "pruned": lambda: pruned(x)}, runs=20)
    before, after = times["unpruned"].median_ms, times["pruned"].median_ms
    print(f"{before:.1f} ms unpruned, {after:.1f} ms pruned, both accelerated: {after / before:.0%}")


if __name__ == "__main__":
    main()
