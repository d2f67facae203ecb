"""Are whole nets faster with zeros on this GPU? ResNet-50 and YOLOv3 from image to output, against cuDNN in every mode.

    python -m bench.gpu_nets --out runs/gpu/nets.jsonl [--minutes 4] [--device cuda]

The dense net runs in float32, tf32, float16 and bfloat16; eager and as a CUDA graph; contiguous and channels-last.
`prunekit.accelerate` runs the pruned net in float32 and half precision; its outputs were compared with the net's before
it was timed. Latencies are wall-clock medians of one image, with the wait for the device. What does not fit the time is
left out with a note; torch.compile comes last, in processes that are ended when their time is over. Rows are JSON
lines; the last lines printed are the verdict. On a processor (--device cpu) the same code runs on the reference, which
tests it and measures nothing.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import prunekit
from bench.gpu import machine_state
from bench.gpu_model import RATIOS
from bench.scripts import Row, append_rows, check_device, one_sentence
from bench.time_limit import TimeLimit, measuring_command_line, run_process
from prunekit.benchmark.problems import pruned_net, random_image
from prunekit.nn import AccelerationReport
from prunekit.nn.accelerate_gpu import accelerate_on_gpu
from prunekit.ops.cuda.devices import GPUS
from prunekit.ops.cuda.dispatch import CudaDevice
from prunekit.ops.cuda.sparse_kernel import cuda_op
from prunekit.timing import captured, time_in_turn

NETS = {"yolov3": 416, "resnet50": 224}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
_RUNS = 20
_FIRST_SECONDS = 15.0  # that one acceleration is taken to need until one was measured
_TUNING_SHARE = 1 / 12  # of the time that is left
_COMPILE_SECONDS, _LEAST_COMPILE_SECONDS = 90.0, 30.0
Call = Callable[[], object]


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure, write rows and print the verdict; return the rows."""
    parser = measuring_command_line(__doc__)
    parser.add_argument("--image-size", type=int, help="of both nets, in pixels; by default 416 and 224")
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--width", type=float, default=1.0, help="of both nets' layers, 1 as published")
    parser.add_argument("--ratios", default=",".join(map(str, (90, 95, *(r for r in RATIOS if r not in (90, 95))))))
    parser.add_argument("--dtypes", default="float32,float16", help="of the pruned nets")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args(arguments)
    with one_sentence():
        check_device(options.device)
    device, limit = torch.device(options.device), TimeLimit(60 * options.minutes)
    measured = (row | machine_state(device) for row in measure_nets(options, device, limit))
    rows = append_rows(options.out, measured)
    for note in limit.skipped:
        sys.stdout.write(f"did not fit the time: {note}\n")
    if rows and not options.no_verdict:
        print_verdict(rows)
    return rows


def measure_nets(options: argparse.Namespace, device: torch.device, limit: TimeLimit) -> Iterator[Row]:
    """Yield a row per net, ratio and dtype, the nets in turn; then those of torch.compile."""
    is_cuda = device.type == "cuda"
    sizes = {name: options.image_size or NETS[name] for name in options.nets.split(",")}
    dtypes = options.dtypes.split(",")
    dense: dict[str, dict[str, float]] = {}
    for name, size in sizes.items():
        x = random_image(size).to(device)
        dense[name] = {}
        for mode, call in dense_modes(pruned_net(name, 0.0, options.width).to(device), x):
            ms = limit.run(f"dense {name}", call)
            dense[name] |= {} if ms is None else {mode: ms}
    for ratio in (int(word) for word in options.ratios.split(",")):
        for name, size in sizes.items():
            for dtype in dtypes:

                def measure(name: str = name, size: int = size, dtype: str = dtype, ratio: int = ratio) -> Row:
                    net = pruned_net(name, ratio, options.width).to(device, DTYPES[dtype])
                    x = random_image(size).to(device, DTYPES[dtype])
                    # What the first format measures, the second finds in the cache; halves are for channels-last.
                    formats = FORMATS if dtype == "float32" else {"channels-last": torch.channels_last}
                    seconds = _TUNING_SHARE * limit.left
                    return {label: accelerated(net, x, f, seconds) for label, f in formats.items()}

                fast = limit.run(f"accelerate {name} in {dtype}", measure, _FIRST_SECONDS if is_cuda else 0.0)
                if fast is not None:
                    row = {"net": name, "image_size": size, "ratio": ratio, "dtype": dtype}
                    yield {**row, "dense_ms": dense[name], "accelerated": fast}
    if not options.no_compile:
        for name, size in sizes.items():
            yield from (compiled(name, size, options, dtype, limit) for dtype in dtypes)


def compiled(name: str, size: int, options: argparse.Namespace, dtype: str, limit: TimeLimit) -> Row:
    """Return the row of torch.compile's dense net: its milliseconds, or why there are none."""
    row: Row = {"net": name, "image_size": size, "dtype": dtype, "compile_ms": None}
    seconds = min(_COMPILE_SECONDS, limit.left)
    if seconds < _LEAST_COMPILE_SECONDS:
        return row | {"note": f"torch.compile was left out: {limit.left:.0f} s were left"}
    arguments = ["--net", name, "--image-size", str(size), "--dtype", dtype, "--width", str(options.width)]
    command = [sys.executable, "-m", "bench.gpu_compiled", *arguments, "--device", options.device]
    code, printed = run_process(command, seconds, subprocess.PIPE)
    if code != 0:
        why = f"was ended after {seconds:.0f} s" if code is None else f"failed with exit code {code}"
        return row | {"note": f"torch.compile {why}"}
    return row | {"compile_ms": float(printed.split()[-1])}


def dense_modes(net: nn.Module, x: Tensor) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yield "dtype mode format" and what measures its median milliseconds; on a processor float32 eager alone."""
    torch.backends.cudnn.benchmark = True
    modes = {"float32": (torch.float32, False)}
    if x.is_cuda:
        modes |= {"tf32": (torch.float32, True), "float16": (torch.float16, False), "bfloat16": (torch.bfloat16, False)}
    for precision, (dtype, is_tf32_allowed) in modes.items():
        for label, memory_format in FORMATS.items():
            here = copy.deepcopy(net).to(dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload]
            image = x.to(dtype).contiguous(memory_format=memory_format)
            for mode, way in _ways_to_run(here, image).items():

                def measure(way: Callable[[], Call] = way, is_allowed: bool = is_tf32_allowed) -> float:
                    with allow_tf32(is_allowed):
                        return median_ms(way(), x)

                yield f"{precision} {mode} {label}", measure


def _ways_to_run(net: nn.Module, x: Tensor) -> dict[str, Callable[[], Call]]:
    ways: dict[str, Callable[[], Call]] = {"eager": lambda: lambda: net(x)}
    if x.is_cuda:
        ways["cuda-graph"] = lambda: captured(lambda: net(x), x.device)
    return ways


@contextmanager
def allow_tf32(is_allowed: bool) -> Iterator[None]:
    """Let cuDNN and cuBLAS round to tf32, or not, within the block."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def accelerated(net: nn.Module, x: Tensor, memory_format: torch.memory_format, seconds: float) -> Row:
    """Accelerate, in float32 with full precision, and time the result; kernels are measured for `seconds`."""
    here = copy.deepcopy(net).to(memory_format=memory_format)  # type: ignore[call-overload]
    image = x.contiguous(memory_format=memory_format)
    with allow_tf32(False):
        fast = _accelerate(here, image, seconds)
        report = fast.report
        assert isinstance(report, AccelerationReport)
        return {
            "ms": median_ms(lambda: fast(image), x),
            "engine": report.engine,
            "sparse_layers": sum(row.implementation != "dense" for row in report.rows),
            "layers": len(report.rows),
            "relative_rms": report.relative_rms,
            "notes": report.notes,
        }


def _accelerate(net: nn.Module, x: Tensor, seconds: float) -> nn.Module:
    if x.is_cuda:
        return prunekit.accelerate(net, x, tuning_seconds=seconds)
    device = CudaDevice(GPUS["rtx-4090"], cuda_op, lambda call: 1.0, False, False)
    with torch.no_grad():
        return accelerate_on_gpu(net, [x], net(x), 0.0, None, None, device)


def median_ms(call: Call, x: Tensor) -> float:
    """Median wall-clock milliseconds of a call, with the wait for x's device."""

    def run() -> None:
        call()
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    return time_in_turn({"call": run}, _RUNS if x.is_cuda else 1)["call"].median_ms


def print_verdict(rows: list[Row]) -> None:
    """Per net, ratio and dtype: the faster format against the strongest dense in that dtype, and what others take."""
    by_compiling = {(row["net"], row["dtype"]): row["compile_ms"] for row in rows if row.get("compile_ms")}
    for row in (row for row in rows if "accelerated" in row):
        best, dtype = min(row["accelerated"].values(), key=lambda one: one["ms"]), row["dtype"]
        dense = dict(row["dense_ms"])
        for (net, precision), ms in by_compiling.items():
            dense |= {f"{precision} compile channels-last": ms} if net == row["net"] else {}
        strongest = {
            precision: min((mode for mode in dense if mode.startswith(f"{precision} ")), key=lambda mode: dense[mode])
            for precision in ("float32", "tf32", "float16", "bfloat16")
            if any(mode.startswith(f"{precision} ") for mode in dense)
        }
        line = f"{row['net']} in {dtype}, {row['ratio']} % zeros: {best['ms']:.2f} ms"
        if dtype in strongest:
            ms = dense[strongest[dtype]]
            line += f" against {ms:.2f} ms ({strongest[dtype]}): {ms / best['ms']:.2f}×"
        line += f"; {best['sparse_layers']} of {best['layers']} convolutions sparse"
        others = [f"{name} {dense[mode]:.2f} ms" for name, mode in strongest.items() if name != dtype]
        sys.stdout.write(f"{line}{'; dense ' if others else ''}{', '.join(others)}\n")
    for row in (row for row in rows if row.get("note")):
        sys.stdout.write(f"{row['net']} in {row['dtype']}: {row['note']}\n")


if __name__ == "__main__":
    main()
