"""At which sparsity does the packed convolution beat torch's dense one, layer shape by layer shape?

    python -m bench.layers --threads 1 --ratios 50,75,90 >> rows.jsonl

Every distinct convolution of YOLOv3, with the activations that reach it. The last row sums the 75 layers.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter

import torch

from bench.problems import LayerProblem, layer_problems, pruned_detector
from prunekit.nn.tuning import tune_layer
from prunekit.pipeline.environment import describe_environment
from prunekit.prune import magnitude_scores, masks_from_scores


def main() -> None:
    """Print JSON lines: the environment, a row per layer shape and ratio, a sum per ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ratios", type=lambda text: [float(r) for r in text.split(",")], default=[50, 75, 90, 95, 99])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps({"environment": describe_environment(), "threads": arguments.threads}))
    problems = layer_problems(pruned_detector("yolov3", 0), 416)
    for ratio in arguments.ratios:
        total: Counter[str] = Counter()
        for problem in problems:
            row = measure(problem, ratio)
            print(json.dumps(row), flush=True)
            total.update({key: row[key] * problem.count for key in ("dense_ms", "sparse_ms")})
        print(json.dumps({"ratio": ratio, "layers": sum(p.count for p in problems), **total}), flush=True)


def measure(problem: LayerProblem, ratio: float) -> dict[str, float]:
    """Time one layer dense and packed; rates are of the multiply-adds that are really done."""
    conv = problem.conv
    (mask,) = masks_from_scores({"": magnitude_scores(conv.weight)}, ratio).values()
    with torch.no_grad():
        conv.weight.masked_fill_(~mask, 0.0)
        report, _ = tune_layer(problem.name, conv, None, problem.x)
    if report.dense_ms is None or report.sparse_ms is None:
        raise RuntimeError(f"{problem.name} was not timed: {report.reason}.")
    return {
        "layer": problem.name,  # type: ignore[dict-item]
        "count": problem.count,
        "ratio": ratio,
        "dense_ms": report.dense_ms,
        "sparse_ms": report.sparse_ms,
        "speedup": report.dense_ms / report.sparse_ms,
        "dense_gflops": problem.flops / report.dense_ms / 1e6,
        "sparse_gflops": problem.flops * report.density / report.sparse_ms / 1e6,
    }


if __name__ == "__main__":
    main()
