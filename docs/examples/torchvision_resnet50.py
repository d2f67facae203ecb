"""A torchvision ResNet-50, pruned by torch and made fast, then saved for another process.

Needs torchvision. The weights are random: which weights are zero matters for the speed, their values do not.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.utils.prune as prune
import torchvision

import prunekit


def pruned_resnet50(ratio: float) -> torch.nn.Module:
    """Return a ResNet-50 whose convolutions have lost this fraction of their weights."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            prune.l1_unstructured(layer, "weight", ratio)
    return model


def main() -> None:
    """Prune, accelerate, compare, save and load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=224, help="in pixels")
    parser.add_argument("--ratio", type=float, default=0.9, help="fraction of the weights to prune")
    options = parser.parse_args()
    torch.set_num_threads(1)

    model = pruned_resnet50(options.ratio)
    x = torch.rand(1, 3, options.image_size, options.image_size)
    fast = prunekit.accelerate(model, x)
    report = fast.report
    print(f"{report.before_ms:.1f} ms before, {report.after_ms:.1f} ms after: {report.speedup:.2f}x on one thread")
    print(f"relative RMS of the difference: {report.relative_rms:.1e}")

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "fast.safetensors"
        prunekit.save(fast, path)
        again = prunekit.load(path)
        print(f"saved in {path.stat().st_size / 1e6:.1f} MB; loaded, the largest difference is", end=" ")
        print(f"{(again(x) - model(x)).abs().max() / model(x).abs().max():.1e} of the largest output")


if __name__ == "__main__":
    main()
