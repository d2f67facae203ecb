"""Are YOLOv3's convolutions faster with zeros on this GPU? Every layer shape against cuDNN, at nine pruning ratios.

    python -m bench.gpu --out runs/gpu/rows.jsonl [--minutes 4] [--device cuda]

For each layer shape and ratio, the record kernel's best cuts by the model are compared with a float64 convolution and
timed beside cuDNN (float32, tf32, float16; contiguous and channels-last): each as a replayed CUDA graph, with a warm
and with a cold second-level cache. So are, in float32, the gradients to the input. The fastest cut stays; one whose
output is wrong is an error, never a timing. Rows are JSON lines; the last lines printed are the verdict. On a processor
(--device cpu) the same code runs on the reference, which tests it and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu_model import RATIOS, Layer, dense_seconds, modelled_layer, yolov3_layers
from prunekit.ops.conv_plan import input_grad_job
from prunekit.ops.kernel_cache import KernelCache
from prunekit.ops.masked_conv2d import dense_input_grad
from prunekit.ops.record_filter import RecordFilter, pack_records
from prunekit.ops.record_launch import GPUS, Gpu, RecordLaunch, RecordProblem, best_launches, gpu_of
from prunekit.timing import cuda_seconds

_MAX_RELATIVE_RMS = 1e-5
_CUTS = 6
_REPLAYS = 15
_COLD_BYTES = 192 << 20  # more than any second-level cache


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, write rows and print the verdict; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0, help="stop beginning new layers after so long")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--image-size", type=int, default=416)
    parser.add_argument("--max-shapes", type=int, default=1000)
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)))
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    gpu = gpu_of(torch.cuda.get_device_properties(device)) if device.type == "cuda" else GPUS["rtx-2070-super"]
    ratios = [int(word) for word in options.ratios.split(",")]
    layers = sorted(yolov3_layers(options.image_size).items(), key=lambda pair: -pair[0].macs * pair[1])
    deadline = time.monotonic() + 60 * options.minutes
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with options.out.open("a") as out:
        for layer, count in layers[: options.max_shapes]:
            if time.monotonic() > deadline:
                sys.stdout.write(f"out of time after {len(rows)} rows\n")
                break
            for row in measure_layer(layer, count, ratios, device, gpu):
                rows.append(row | machine_state(device))
                out.write(json.dumps(rows[-1]) + "\n")
                out.flush()
    print_verdict(rows, ratios)
    return rows


def machine_state(device: torch.device) -> dict[str, Any]:
    """The GPU, its driver, clocks and power at this moment, as nvidia-smi tells them."""
    state: dict[str, Any] = {"torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", str(device.index or 0)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        state |= dict(zip(fields.split(","), done.stdout.strip().split(", "), strict=False))
    return state


def measure_layer(
    layer: Layer, count: int, ratios: list[int], device: torch.device, gpu: Gpu
) -> Iterator[dict[str, Any]]:
    """Yield a row per ratio; the dense timings are taken once."""
    generator = torch.Generator().manual_seed(0)
    size = layer.size * layer.stride
    x = torch.randn(1, layer.in_channels, size, size, generator=generator).to(device)
    weight = torch.randn(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel, generator=generator)
    weight /= (layer.in_channels * layer.kernel**2) ** 0.5
    dense = dense_timings(x, weight.to(device), layer)
    strongest = min((name for name in dense if name.startswith("float32")), key=lambda name: dense[name]["warm_ms"])
    for ratio in ratios:
        mask = torch.rand(weight.shape, generator=generator) >= ratio / 100
        sparse = tune(x, weight, mask, layer, gpu)
        gradient = tune_gradient(x, weight, mask, layer, gpu)
        modelled, _, floor = modelled_layer(layer, 1 - ratio / 100, gpu)
        yield {
            "layer": asdict(layer),
            "count": count,
            "ratio": ratio,
            "dense": dense,
            "strongest_float32": strongest,
            **sparse,
            "input_grad": gradient,
            "modelled_ms": 1e3 * modelled,
            "modelled_dense_ms": 1e3 * dense_seconds(layer, gpu),
            "memory_floor_ms": 1e3 * floor,
        }


def dense_timings(x: Tensor, weight: Tensor, layer: Layer) -> dict[str, dict[str, float]]:
    """CuDNN's times by dtype and memory format; on a processor float32 alone."""
    modes = {"float32": (torch.float32, False)}
    if x.is_cuda:
        modes |= {"tf32": (torch.float32, True), "float16": (torch.float16, False)}
    timings = {}
    torch.backends.cudnn.benchmark = True
    for name, (dtype, allows_tf32) in modes.items():
        torch.backends.cudnn.allow_tf32 = allows_tf32
        for memory_format in (torch.contiguous_format, torch.channels_last):
            a, b = (t.to(dtype).to(memory_format=memory_format) for t in (x, weight))
            call = _dense_call(a, b, layer)
            label = name + ("-channels-last" if memory_format == torch.channels_last else "")
            timings[label] = timed(call, x.device)
    torch.backends.cudnn.allow_tf32 = False
    return timings


def _dense_call(x: Tensor, weight: Tensor, layer: Layer) -> Callable[[], Tensor]:
    return lambda: F.conv2d(x, weight, None, layer.stride, layer.kernel // 2)


def tune(x: Tensor, weight: Tensor, mask: Tensor, layer: Layer, gpu: Gpu) -> dict[str, Any]:
    """Check and time the modelled best cuts; return the fastest's row."""
    kernel, stride = (layer.kernel, layer.kernel), (layer.stride, layer.stride)
    density = float(mask.float().mean())
    size = (layer.size, layer.size)
    problem = RecordProblem(layer.out_channels, layer.in_channels, kernel, 1, density, 1, size, stride)
    kept = torch.where(mask, weight, 0).to(x.device)
    expected = F.conv2d(x.double(), kept.double(), None, layer.stride, layer.kernel // 2)
    best: dict[str, Any] = {"sparse": None, "launch": None}
    packed: dict[tuple[int, int], RecordFilter] = {}
    for launch in best_launches(problem, gpu, _CUTS if x.is_cuda else 1):
        key = launch.chunk_channels, launch.slices
        if key not in packed:
            packed[key] = _to(pack_records(weight, mask, 1, problem.window_taps, *key), x.device)
        call = _sparse_call(x, packed[key], layer, launch)
        difference = float((call().double() - expected).norm() / expected.norm().clamp(min=1e-30))
        if not difference <= _MAX_RELATIVE_RMS:
            raise AssertionError(f"{layer} at density {density:.3f} with {launch} is off by {difference:.3g}")
        timing = timed(call, x.device)
        if best["sparse"] is None or timing["warm_ms"] < best["sparse"]["warm_ms"]:
            best = {"sparse": timing, "launch": asdict(launch), "relative_rms": difference}
    return best


def tune_gradient(x: Tensor, weight: Tensor, mask: Tensor, layer: Layer, gpu: Gpu) -> dict[str, Any]:
    """Check and time the gradient to the input beside cuDNN's in float32; its layer of 3 channels needs none."""
    two = [layer.stride] * 2, [layer.kernel // 2] * 2, [1, 1]
    job = input_grad_job(x.shape, mask, *two, 1)
    assert job is not None, "the record kernel takes every layer of YOLOv3"
    kept = torch.where(mask, weight, 0).to(x.device)
    size = (layer.size, layer.size)
    grad = torch.randn(1, layer.out_channels, *size, generator=torch.Generator().manual_seed(1)).to(x.device)
    choice, _ = job.measure(
        gpu,
        x.device,
        x.dtype,
        lambda plan: plan.run(grad, kept),
        lambda: dense_input_grad(grad, kept, list(x.shape), *two, 1),
        cuda_seconds if x.is_cuda else lambda call: timed(call, x.device)["warm_ms"] / 1e3,
        KernelCache(None),
        allow_tf32=False,
        cuts=_CUTS if x.is_cuda else 1,
    )
    return {"sparse_ms": 1e3 * choice.sparse_seconds, "dense_ms": 1e3 * choice.dense_seconds, "chosen": choice.kernel}


def _to(packed: RecordFilter, device: torch.device) -> RecordFilter:
    return RecordFilter(packed.header, packed.starts.to(device), packed.records.to(device), packed.rows.to(device))


def _sparse_call(x: Tensor, packed: RecordFilter, layer: Layer, launch: RecordLaunch) -> Callable[[], Tensor]:
    two = [layer.stride] * 2, [layer.kernel // 2] * 2, [1, 1]
    tensors = packed.starts, packed.records, packed.rows
    words = packed.header.words()

    def call() -> Tensor:
        y: Tensor = torch.ops.prunekit.record_conv2d(x, words, *tensors, None, None, *two, "none", 0.0, launch.words())
        return y

    return call


def timed(call: Callable[[], Tensor], device: torch.device) -> dict[str, float]:
    """Median milliseconds of a call: replayed as a CUDA graph with a warm cache, and with a cold one."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        elapsed = 1e3 * (time.perf_counter() - begin)
        return {"warm_ms": elapsed, "cold_ms": elapsed}
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    flush = torch.empty(_COLD_BYTES, dtype=torch.uint8, device=device)
    return {
        "warm_ms": _median_ms(graph.replay, device, None),
        "cold_ms": _median_ms(graph.replay, device, flush),
    }


def _median_ms(replay: Callable[[], None], device: torch.device, flush: Tensor | None) -> float:
    times: list[float] = []
    for _ in range(_REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        if flush is not None:
            flush.zero_()
        begin.record()
        replay()
        end.record()
        torch.cuda.synchronize(device)
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def print_verdict(rows: list[dict[str, Any]], ratios: list[int]) -> None:
    """Per ratio: the layers' sum against cuDNN's, each layer taking the faster, and how the model did."""
    write = sys.stdout.write
    for ratio in ratios:
        here = [row for row in rows if row["ratio"] == ratio and row["sparse"]]
        if not here:
            continue
        counts = [row["count"] for row in here]
        dense = [row["dense"][row["strongest_float32"]]["warm_ms"] for row in here]
        sparse = [row["sparse"]["warm_ms"] for row in here]
        dense_sum = sum(count * ms for count, ms in zip(counts, dense, strict=True))
        faster_sum = sum(count * min(pair) for count, *pair in zip(counts, dense, sparse, strict=True))
        wins = sum(a < b for a, b in zip(sparse, dense, strict=True))
        ratio_to_model = sum(sparse) / sum(row["modelled_ms"] for row in here)
        gradients = [row["input_grad"] for row in here]
        dense_grad, faster_grad = (
            sum(n * pick((g["dense_ms"], g["sparse_ms"])) for n, g in zip(counts, gradients, strict=True))
            for pick in (lambda pair: pair[0], min)
        )
        write(
            f"{ratio} % zeros: convolutions {faster_sum:.2f} ms against cuDNN's float32 {dense_sum:.2f} ms, "
            f"{dense_sum / faster_sum:.2f}×; faster in {wins} of {len(here)} shapes; "
            f"measured / modelled {ratio_to_model:.2f}; gradients to the input {dense_grad / faster_grad:.2f}×\n"
        )
    write(f"{len(rows)} rows, all within {_MAX_RELATIVE_RMS:g} of float64\n")


if __name__ == "__main__":
    main()
