"""What would YOLOv3's layers of 13×13 and 26×26 take in float16 on GPUs that are not here? Modeled times.

    python -m bench.gpu_small_maps [--batch 1]

For each layer, GPU and pruning ratio: the bitmap kernels, the condensed kernel, and the dense floor, which is an
implicit GEMM at 70 % of the tensor cores' peak or the bytes of weights, input and output, whichever is larger, without
a launch. Nothing is run on a GPU; docs/gpu.md lists the assumptions.
"""

from __future__ import annotations

import argparse
import sys

from bench.gpu_model import Layer, dense_seconds
from prunekit.ops.cuda.bitmap.cost import MODEL as BITMAP
from prunekit.ops.cuda.condensed.cost import MODEL as CONDENSED
from prunekit.ops.cuda.condensed.cost import CondensedProblem
from prunekit.ops.cuda.devices import GPUS, Gpu

RATIOS = (50, 80, 90, 95, 99)
#: (in_channels, out_channels, kernel, stride, output)
LAYERS = (
    (512, 1024, 3, 1, 13),
    (512, 1024, 3, 2, 13),
    (1024, 512, 1, 1, 13),
    (256, 512, 3, 1, 26),
    (512, 256, 1, 1, 26),
)


def kernel_seconds(layer: Layer, density: float, gpu: Gpu) -> list[float]:
    """Return the modeled times of the bitmap and condensed kernels at their best cuts; inf where no block fits."""
    problem = CondensedProblem.of(layer.problem(density))
    chosen = BITMAP.choose_launch(problem, gpu), CONDENSED.choose_launch(problem, gpu)
    return [one[1] if one else float("inf") for one in chosen]


def main() -> None:
    """Print a table for each GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1)
    batch: int = parser.parse_args().batch
    write = sys.stdout.write
    for gpu in GPUS.values():
        write(f"\n| {gpu.name}, batch {batch} | dense floor | " + " | ".join(f"{ratio} %" for ratio in RATIOS) + " |\n")
        write("|---" * (len(RATIOS) + 2) + "|\n")
        for in_channels, out_channels, kernel, stride, size in LAYERS:
            layer = Layer(out_channels, in_channels, kernel, stride, size, batch)
            cells = []
            for ratio in RATIOS:
                pair = kernel_seconds(layer, 1 - ratio / 100, gpu)
                cells.append(" / ".join(f"{1e6 * seconds:.1f}" for seconds in pair))
            name = f"{in_channels} → {out_channels}, {kernel}×{kernel}" + (", stride 2" if stride == 2 else "")
            dense = 1e6 * dense_seconds(layer, gpu, "float16")
            write(f"| {name}, {size}×{size} | {dense:.1f} | " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main()
