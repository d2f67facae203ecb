"""Any model of timm, pruned by magnitude with densities that differ by layer, and made fast.

Needs timm. --pretrained downloads the published weights; without it they are random, and as fast.
"""

import argparse

import timm
import torch

import prunekit
from prunekit.prune import allocate, apply_masks, score_model


def main() -> None:
    """Share a budget of weights among the layers, prune, accelerate, and show what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mobilenetv2_100", help="name in timm.list_models()")
    parser.add_argument("--pretrained", action="store_true", help="download the published weights")
    parser.add_argument("--image-size", type=int, default=224, help="in pixels")
    parser.add_argument("--ratio", type=float, default=90, help="percent of all weights to prune")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    model = timm.create_model(options.model, pretrained=options.pretrained).eval()
    masks = allocate(model, score_model(model, "magnitude"), budget=f"{options.ratio}%", allocation="erk")
    apply_masks(model, masks)

    x = torch.rand(1, 3, options.image_size, options.image_size)
    fast = prunekit.accelerate(model, x)
    report = fast.report
    densities = [row.density for row in report.rows]
    print(f"{options.model}: {len(report.rows)} layers, densities from {min(densities):.3f} to {max(densities):.3f}")
    print(f"{report.before_ms:.1f} ms before, {report.after_ms:.1f} ms after: {report.speedup:.2f}x on one thread")
    slowest = max(report.rows, key=lambda row: row.ms or 0)
    print(f"the slowest layer is {slowest.name}: {slowest.ms:.2f} ms, limited by {slowest.limit}")


if __name__ == "__main__":
    main()
