"""Are whole nets faster with zeros on this GPU? ResNet-50 and YOLOv3 from image to output, against cuDNN in every mode.

    python -m bench.gpu_nets --out runs/gpu/nets.jsonl [--minutes 4] [--device cuda]

The dense net runs in float32, tf32 and float16; eager, torch.compile and as a CUDA graph; contiguous and channels-last.
`prunekit.accelerate` runs the pruned net, contiguous and channels-last; its outputs were compared with the net's before
it was timed. Latencies are wall-clock medians of one image, with the wait for the device. Rows are JSON lines; the last
lines printed are the verdict. On a processor (--device cpu) the same code runs on the reference, which tests it and
measures nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunekit
from bench.gpu import machine_state
from bench.gpu_model import RATIOS
from prunekit.benchmark.problems import pruned_net, random_image
from prunekit.nn import AccelerationReport
from prunekit.nn.accelerate_gpu import accelerate_on_gpu
from prunekit.ops.masked_conv2d_cuda import CudaDevice
from prunekit.ops.record_launch import GPUS
from prunekit.ops.sparse_kernel import cuda_op
from prunekit.timing import time_in_turn

NETS = {"yolov3": 416, "resnet50": 224}
_RUNS = 20
_FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
Call = Callable[[], object]


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, write rows and print the verdict; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0, help="stop beginning new ratios after so long")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--image-size", type=int, help="of both nets, in pixels; by default 416 and 224")
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--width", type=float, default=1.0, help="of both nets' layers, 1 as published")
    parser.add_argument("--ratios", default=",".join(map(str, (90, 95, *(r for r in RATIOS if r not in (90, 95))))))
    options = parser.parse_args(arguments)
    device, ratios = torch.device(options.device), [int(word) for word in options.ratios.split(",")]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with options.out.open("a") as out:
        names, begin = options.nets.split(","), time.monotonic()
        for position, name in enumerate(names):
            deadline = begin + 60 * options.minutes * (position + 1) / len(names)
            for row in measure_net(name, options.image_size or NETS[name], options.width, ratios, device, deadline):
                rows.append(row | machine_state(device))
                out.write(json.dumps(rows[-1]) + "\n")
                out.flush()
    print_verdict(rows)
    return rows


def measure_net(
    name: str, size: int, width: float, ratios: list[int], device: torch.device, deadline: float
) -> Iterator[dict[str, Any]]:
    """Yield a row per ratio; the dense timings are taken once."""
    x = random_image(size).to(device)
    dense = dense_timings(pruned_net(name, 0.0, width).to(device), x)
    strongest = min((mode for mode in dense if mode.startswith("float32")), key=lambda mode: dense[mode])
    for ratio in ratios:
        if time.monotonic() > deadline:
            sys.stdout.write(f"out of time for {name} at {ratio} % zeros\n")
            continue
        net = pruned_net(name, ratio, width).to(device)
        yield {
            "net": name,
            "image_size": size,
            "ratio": ratio,
            "dense_ms": dense,
            "strongest_float32": strongest,
            "accelerated": {label: accelerated(net, x, memory_format) for label, memory_format in _FORMATS.items()},
        }


def dense_timings(net: nn.Module, x: Tensor) -> dict[str, float]:
    """Median milliseconds by "dtype mode format"; on a processor float32 eager alone."""
    timings = {}
    torch.backends.cudnn.benchmark = True
    modes = {"float32": (torch.float32, False)}
    if x.is_cuda:
        modes |= {"tf32": (torch.float32, True), "float16": (torch.float16, False)}
    for precision, (dtype, is_tf32_allowed) in modes.items():
        with allow_tf32(is_tf32_allowed):
            for label, memory_format in _FORMATS.items():
                here = copy.deepcopy(net).to(dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload]
                image = x.to(dtype).contiguous(memory_format=memory_format)
                for mode, call in _ways_to_run(here, image).items():
                    timings[f"{precision} {mode} {label}"] = _median_ms(call, x)
    return timings


def _ways_to_run(net: nn.Module, x: Tensor) -> dict[str, Call]:
    ways: dict[str, Call] = {"eager": lambda: net(x)}
    if x.is_cuda:
        ways["cuda-graph"] = captured(lambda: net(x), x.device)
        if x.is_contiguous():  # the compiler chooses the layout itself
            compiled = torch.compile(net)
            ways["compile"] = lambda: compiled(x)
    return ways


def captured(call: Call, device: torch.device) -> Call:
    """Capture a call as a CUDA graph and return its replay."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            call()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            call()
    return graph.replay


@contextmanager
def allow_tf32(is_allowed: bool) -> Iterator[None]:
    """Let cuDNN and cuBLAS round to tf32, or not, within the block."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def accelerated(net: nn.Module, x: Tensor, memory_format: torch.memory_format) -> dict[str, Any]:
    """Accelerate for float32 in full precision, and time the result."""
    here = copy.deepcopy(net).to(memory_format=memory_format)  # type: ignore[call-overload]
    image = x.contiguous(memory_format=memory_format)
    with allow_tf32(False):
        fast = _accelerate(here, image)
        report = fast.report
        assert isinstance(report, AccelerationReport)
        return {
            "ms": _median_ms(lambda: fast(image), x),
            "engine": report.engine,
            "sparse_layers": sum(row.implementation != "dense" for row in report.rows),
            "layers": len(report.rows),
            "relative_rms": report.relative_rms,
            "notes": report.notes,
        }


def _accelerate(net: nn.Module, x: Tensor) -> nn.Module:
    if x.is_cuda:
        return prunekit.accelerate(net, x, tuning_seconds=30.0)
    device = CudaDevice(GPUS["rtx-2070-super"], cuda_op, lambda call: 1.0, False, False)
    with torch.no_grad():
        return accelerate_on_gpu(net, [x], net(x), 0.0, None, None, device)


def _median_ms(call: Call, x: Tensor) -> float:
    def run() -> None:
        call()
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    return time_in_turn({"call": run}, _RUNS if x.is_cuda else 1)["call"].median_ms


def print_verdict(rows: list[dict[str, Any]]) -> None:
    """Per net and ratio: the faster format against the strongest dense float32, and what tf32 and float16 take."""
    for row in rows:
        best = min(row["accelerated"].values(), key=lambda one: one["ms"])
        dense, strongest = row["dense_ms"], row["strongest_float32"]
        others = [
            f"{precision} {min(ms for mode, ms in dense.items() if mode.startswith(precision)):.2f} ms"
            for precision in ("tf32", "float16")
            if any(mode.startswith(precision) for mode in dense)
        ]
        sys.stdout.write(
            f"{row['net']}, {row['ratio']} % zeros: {best['ms']:.2f} ms against {dense[strongest]:.2f} ms "
            f"({strongest}): {dense[strongest] / best['ms']:.2f}×; {best['sparse_layers']} of {best['layers']} "
            f"convolutions sparse{'; dense ' if others else ''}{', '.join(others)}\n"
        )


if __name__ == "__main__":
    main()
