"""Is a pruned net in int8 faster than the fastest dense engine in its best precision?

    python -m bench.int8 --model yolov3 --ratios 0,50,75,90,95,99 --structures unstructured,block1x4 --out rows.jsonl

Nets have random weights, pruned by magnitude in each layer. Of every structure and ratio, prunekit in float32 and in
int8 are timed in turn with dense peers on the unpruned weights; a row says what was measured, how many convolutions run
in int8, how far its outputs are from float32, and the ratio to each peer's median of the same turns. Engines are
compared with float32 outputs before they are timed: float32 ones must be equal up to rounding. Peers that are not
installed are named and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunekit
from bench.scripts import Row, append_rows, begin, command_line, print_row
from prunekit.benchmark.engines.calibration import calibration_inputs
from prunekit.benchmark.engines.calls import UnavailableError
from prunekit.benchmark.engines.precisions import FLOAT32
from prunekit.benchmark.peers import PEERS
from prunekit.benchmark.problems import NETS, pruned_net
from prunekit.comparison import MAX_RELATIVE_RMS, check_within, compare
from prunekit.nn import AccelerationReport
from prunekit.timing import time_in_turn


def dense_peers(net: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Build the peers that are there, each compared with torch's float32."""
    calls, expected = {}, net(x)
    for name in names:
        peer = PEERS[name]
        try:
            if peer.missing:
                raise UnavailableError(peer.missing)
            call = peer.build(net, x)
        except UnavailableError as reason:
            print_row({"peer": peer.name, "not timed": str(reason)})
            continue
        difference = compare(flat(expected), call()).relative_rms
        if peer.precision == FLOAT32:
            check_within(flat(expected), call(), peer.name, MAX_RELATIVE_RMS)
        print_row({"peer": peer.name, "precision": peer.precision, "relative_rms": difference})
        calls[peer.name] = call
    return calls


def flat(outputs: Any) -> tuple[Tensor, ...]:
    """Return a net's outputs as a tuple."""
    return tuple(outputs) if isinstance(outputs, (list, tuple)) else (outputs,)


def measured(args: argparse.Namespace, structure: str, ratio: float, x: Tensor, peers: dict[str, Any]) -> Row:
    """Accelerate one net in both precisions, and time it in turn with the dense peers."""
    net = pruned_net(args.model, ratio, args.width, structure=structure)
    images = [torch.from_numpy(array) for array in calibration_inputs(x)]
    fast = prunekit.accelerate(net, x)
    int8 = prunekit.accelerate(net, x, precision="int8", calibration=images)
    report = int8.report
    assert isinstance(report, AccelerationReport)
    calls = {"float32": lambda: fast(x), "int8": lambda: int8(x), **peers}
    times = {name: timing.median_ms for name, timing in time_in_turn(calls, args.runs, warm_up=2).items()}
    return {
        "model": args.model, "image_size": x.shape[-1], "threads": args.threads, "structure": structure, "ratio": ratio,
        "int8_layers": sum(row.precision == "int8" for row in report.rows), "layers": len(report.rows),
        "relative_rms": report.relative_rms, "notes": report.notes, "ms": times,
        "int8_over": {name: ms / times["int8"] for name, ms in times.items() if name != "int8"},
    }  # fmt: skip


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Read the options."""
    parser = command_line(__doc__)
    parser.add_argument("--model", choices=list(NETS), default="yolov3")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, help="pixels; by default the net's own")
    parser.add_argument("--ratios", default="0,50,75,90,95,99")
    parser.add_argument("--structures", default="unstructured,block1x4")
    parser.add_argument("--peers", default="openvino,openvino-bf16,openvino-int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, added to what is there")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Print a row for each structure and ratio, and add it to the file."""
    args = parsed(argv)
    begin(args.threads)
    size = args.image_size or NETS[args.model].image_size
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense = pruned_net(args.model, 0.0, args.width)
        peers = dense_peers(dense, x, [name for name in args.peers.split(",") if name])
        for structure in args.structures.split(","):
            for ratio in map(float, args.ratios.split(",")):
                row = measured(args, structure, ratio, x, peers)
                append_rows(args.out, [row])
                print_row(row)


if __name__ == "__main__":
    main(sys.argv[1:])
