"""How much faster is an unstructured-pruned YOLOv3 than the fastest dense engine, at each pruning ratio?

    python -m bench.end_to_end --threads 1 --ratios 0,50,75,90,95,99 >> rows.jsonl

Dense engines gain nothing from zeros, so they run once, on the unpruned weights' graph, in turn with every ratio's
accelerated model. A row is printed per competitor; nothing is timed before its outputs were found equal.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import prunekit
from bench.peers import build_peers
from bench.problems import RATIOS, pruned_detector
from prunekit.nn import MAX_RELATIVE_RMS, AccelerationReport
from prunekit.pipeline.environment import describe_environment
from prunekit.timing import relative_rms, time_in_turn


def main() -> None:
    """Print JSON lines: the environment, then a row per competitor, then the speed-ups."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    print(json.dumps({"environment": describe_environment(), "threads": arguments.threads}), flush=True)
    x = torch.rand(1, 3, arguments.image_size, arguments.image_size, generator=torch.Generator().manual_seed(0))
    dense = pruned_detector(arguments.model, 0)
    calls: dict[str, Callable[[], object]] = dict(checked(build_peers(dense, x), dense(x)[0]))
    peers = list(calls)
    for ratio in arguments.ratios:
        net = pruned_detector(arguments.model, ratio)
        fast = prunekit.accelerate(net, x)
        assert isinstance(fast.report, AccelerationReport)
        print(f"{ratio} %: accelerated, {fast.report.relative_rms:.1e} relative RMS", file=sys.stderr)
        calls[f"prunekit {ratio} %"] = partial(fast, x)
    times = time_in_turn(calls, arguments.runs)
    fastest = min(peers, key=lambda peer: times[peer].median_ms)
    for name, timing in times.items():
        speedup = times[fastest].median_ms / timing.median_ms
        row = {"model": arguments.model, "competitor": name, **vars(timing), "speedup": speedup, "against": fastest}
        print(json.dumps(row), flush=True)


def checked(peers: dict[str, Callable[[], Tensor]], expected: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return the peers whose first output is right; a wrong one is named and not timed."""
    right = {}
    for name, run in peers.items():
        difference = relative_rms(expected, run())
        if difference <= MAX_RELATIVE_RMS:
            right[name] = run
        else:
            print(f"{name}: not timed, outputs differ by {difference:.2g} relative RMS", file=sys.stderr)
    return right


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov3")
    parser.add_argument("--image-size", type=int, default=416)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--ratios", type=lambda text: [float(r) for r in text.split(",")], default=list(RATIOS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
