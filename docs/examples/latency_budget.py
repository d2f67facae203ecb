"""A budget in milliseconds: as much of the model as runs in that time on this machine.

Layers are timed once and remembered in the cache folder; the result is measured, within 5 % of the budget.
"""

import argparse

import torch

import prunekit
from prunekit.classification import resnet50
from prunekit.prune import allocate, apply_masks, score_model, sparsity


def main() -> None:
    """Time the dense model, ask for a share of that, and prune to it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=224, help="in pixels")
    parser.add_argument("--width", type=float, default=1.0, help="channels relative to ResNet-50's")
    parser.add_argument("--share", type=float, default=40, help="percent of the dense milliseconds that may be left")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    model = resnet50(width=options.width).eval()
    x = torch.rand(1, 3, options.image_size, options.image_size)
    dense_ms = prunekit.accelerate(model, x).report.after_ms
    budget_ms = dense_ms * options.share / 100
    masks = allocate(
        model,
        score_model(model, "magnitude"),
        budget=f"latency={budget_ms:.2f}ms",
        example_input=x,
        allocation="latency",
    )
    print(f"{dense_ms:.1f} ms dense; {budget_ms:.1f} ms leave {100 - 100 * sparsity(masks):.0f} % of the weights")
    kept = {name: mask.float().mean().item() for name, mask in masks.items()}
    for name in sorted(kept, key=lambda name: kept[name])[:: len(kept) - 1]:
        print(f"{name} keeps {100 * kept[name]:.0f} % of its weights")

    apply_masks(model, masks)
    report = prunekit.accelerate(model, x).report
    print(f"pruned to it: {report.after_ms:.1f} ms, in torch {report.before_ms:.1f} ms")


if __name__ == "__main__":
    main()
