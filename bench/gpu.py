"""Are YOLOv3's convolutions faster with zeros on this GPU? Every layer shape against cuDNN, at nine pruning ratios.

    python -m bench.gpu --out runs/gpu/rows.jsonl [--minutes 4] [--dtypes float32,float16,bfloat16] [--device cuda]

For each layer shape, ratio and dtype, the sparse kernels' best cuts by their models are compared with a float64
convolution and timed beside cuDNN (float32 and tf32, or the half precision; contiguous and channels-last): each as a
replayed CUDA graph, with a warm and with a cold second-level cache. So are the gradients to the input. The fastest cut
stays; one whose output is wrong is an error, never a timing. All shapes are measured at 90 and 95 % zeros before other
ratios begin; what does not fit the time is left out with a note. Rows are JSON lines; the last lines printed are the
verdict. On a processor (--device cpu) the same code runs on the reference, which tests it and measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu_model import RATIOS, Layer, net_layers
from bench.scripts import Row, append_rows, check_device, one_sentence
from bench.time_limit import TimeLimit, measuring_command_line
from prunekit.ops.cuda import choice as kernel_choice
from prunekit.ops.cuda.cache import KernelCache
from prunekit.ops.cuda.devices import GPUS, Gpu, gpu_of
from prunekit.ops.cuda.plan import ConvJob, inference_job, input_grad_job
from prunekit.ops.masked_conv2d import dense_input_grad
from prunekit.timing import captured, cuda_seconds, replay_seconds

#: Relative RMS from float64 that rounding explains.
_MOST_WRONG = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _MOST_WRONG}
_FIRST_RATIOS = (90, 95, 99, 80)
_CUTS = 4
_REPLAYS = 15
_COLD_BYTES = 192 << 20  # more than any second-level cache
_FIRST_SECONDS = 5.0  # that a shape is taken to need until one was measured


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure, write rows and print the verdict; return the rows."""
    parser = measuring_command_line(__doc__)
    parser.add_argument("--image-size", type=int, default=416)
    parser.add_argument("--max-shapes", type=int, default=1000)
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)))
    parser.add_argument("--dtypes", default=",".join(_DTYPES))
    options = parser.parse_args(arguments)
    with one_sentence():
        check_device(options.device)
    limit = TimeLimit(60 * options.minutes)
    rows = append_rows(options.out, measure_layers(options, torch.device(options.device), limit))
    if limit.skipped:
        sys.stdout.write(f"{len(limit.skipped)} of the rows did not fit the time: {limit.skipped[0]}\n")
    if rows and not options.no_verdict:
        print_verdict(rows)
    return rows


def measure_layers(options: argparse.Namespace, device: torch.device, limit: TimeLimit) -> Iterator[Row]:
    """Yield a row a layer shape, ratio and dtype."""
    is_cuda = device.type == "cuda"
    gpu = gpu_of(torch.cuda.get_device_properties(device)) if is_cuda else GPUS["rtx-4090"]
    ratios = [int(word) for word in options.ratios.split(",")]
    layers = sorted(net_layers("yolov3", options.image_size).items(), key=lambda pair: -pair[0].macs * pair[1])
    dense: dict[tuple[Layer, torch.dtype], dict[str, dict[str, float]]] = {}
    for ratio, dtype in passes(ratios, options.dtypes.split(","), gpu):
        for layer, count in layers[: options.max_shapes]:
            measure = partial(measure_layer, layer, ratio, dtype, device, gpu, dense)
            row = limit.run(f"{dtype}", measure, _FIRST_SECONDS if is_cuda else 0.0)
            if row is not None:
                yield {"layer": asdict(layer), "count": count, **row, **machine_state(device)}


def passes(ratios: list[int], dtypes: list[str], gpu: Gpu) -> list[tuple[int, torch.dtype]]:
    """Return ratios and dtypes in the order of measuring: the usual ratios before others, bfloat16 after all else."""
    order = [ratio for ratio in _FIRST_RATIOS if ratio in ratios]
    order += [ratio for ratio in ratios if ratio not in order]
    here = [_DTYPES[name] for name in dtypes if name != "bfloat16"]
    found = [(ratio, dtype) for ratio in order for dtype in here]
    has_bfloat16 = "bfloat16" in dtypes and gpu.capability >= 80
    return found + [(ratio, torch.bfloat16) for ratio in order if has_bfloat16]


def machine_state(device: torch.device) -> Row:
    """The GPU, its driver, clocks and power at this moment, as nvidia-smi tells them."""
    state: Row = {"torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", str(device.index or 0)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        state |= dict(zip(fields.split(","), done.stdout.strip().split(", "), strict=False))
    return state


def measure_layer(
    layer: Layer,
    ratio: int,
    dtype: torch.dtype,
    device: torch.device,
    gpu: Gpu,
    dense: dict[tuple[Layer, torch.dtype], dict[str, dict[str, float]]],
) -> Row:
    """Return the row of a ratio; the dense timings are taken once and kept in `dense`."""
    generator = torch.Generator().manual_seed(ratio)
    size = layer.size * layer.stride
    x = torch.randn(1, layer.in_channels, size, size, generator=generator).to(device, dtype)
    weight = torch.randn(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel, generator=generator)
    weight = (weight / (layer.in_channels * layer.kernel**2) ** 0.5).to(device, dtype)
    mask = torch.rand(weight.shape, generator=generator) >= ratio / 100
    if (layer, dtype) not in dense:
        dense[layer, dtype] = dense_timings(x, weight, layer)
    here, name = dense[layer, dtype], str(dtype).removeprefix("torch.")
    strongest = min((mode for mode in here if mode.startswith(name)), key=lambda mode: here[mode]["warm_ms"])
    geometry = [layer.stride] * 2, [layer.kernel // 2] * 2, [1, 1]
    job, gradient = inference_job(x.shape, mask, *geometry, 1), input_grad_job(x.shape, mask, *geometry, 1)
    assert job is not None, "the kernels take every layer of YOLOv3"
    assert gradient is not None, "the kernels take every layer of YOLOv3"
    modeled = job.choose(gpu, dtype, allow_tf32=False, cache=None)
    plain = kernel_choice.dense_seconds(job.problem, gpu, by_winograd=False, dtype=dtype)
    return {
        "ratio": ratio,
        "dtype": name,
        "dense": here,
        "strongest": strongest,
        **tune(x, weight, job, gpu),
        "input_grad": tune_gradient(x, weight, gradient, layer, gpu),
        "modeled_ms": 1e3 * modeled.sparse_seconds,
        "modeled_dense_ms": 1e3 * plain,
        "floor_ms": 1e3 * kernel_choice.floor_seconds(job.problem, gpu, dtype),
    }


def dense_timings(x: Tensor, weight: Tensor, layer: Layer) -> dict[str, dict[str, float]]:
    """CuDNN's times in x's dtype, in float32 also with tf32, by memory format; on a processor contiguous alone."""
    name, timings = str(x.dtype).removeprefix("torch."), {}
    modes = {name: False, "tf32": True} if x.is_cuda and x.dtype == torch.float32 else {name: False}
    formats = (torch.contiguous_format, torch.channels_last)
    torch.backends.cudnn.benchmark = True
    for label, allows_tf32 in modes.items():
        torch.backends.cudnn.allow_tf32 = allows_tf32
        for memory_format in formats if x.is_cuda else formats[:1]:
            a, b = (t.to(memory_format=memory_format) for t in (x, weight))
            mode = label + ("-channels-last" if memory_format == torch.channels_last else "")
            timings[mode] = timed(_dense_call(a, b, layer), x.device)
    torch.backends.cudnn.allow_tf32 = False
    return timings


def _dense_call(x: Tensor, weight: Tensor, layer: Layer) -> Callable[[], Tensor]:
    return lambda: F.conv2d(x, weight, None, layer.stride, layer.kernel // 2)


def tune(x: Tensor, weight: Tensor, job: ConvJob, gpu: Gpu) -> Row:
    """Check and time the modeled best cuts; return the fastest's row."""
    kept = torch.where(job.mask.to(x.device), weight, 0)
    stride, padding, _ = job.geometry
    expected = F.conv2d(x.double(), kept.double(), None, stride, padding)
    best: Row = {"sparse": None, "kernel": None, "launch": None}
    for plan in job.plans(gpu, x.dtype, x.device, _CUTS if x.is_cuda else 1):
        filled = plan.pattern.fill(kept)

        def call(plan: Any = plan, filled: Any = filled) -> Tensor:
            y: Tensor = plan.run(x, filled)
            return y

        difference = float((call().double() - expected).norm() / expected.norm().clamp(min=1e-30))
        if not difference <= _MOST_WRONG[x.dtype]:
            raise AssertionError(f"{job.problem} by {plan.kernel.name} with {plan.launch} is off by {difference:.3g}")
        timing = timed(call, x.device)
        if best["sparse"] is None or timing["warm_ms"] < best["sparse"]["warm_ms"]:
            cut = {"kernel": plan.kernel.name, "launch": asdict(plan.launch)}
            best = {"sparse": timing, **cut, "relative_rms": difference}
    return best


def tune_gradient(x: Tensor, weight: Tensor, job: ConvJob, layer: Layer, gpu: Gpu) -> Row:
    """Check and time the gradient to the input beside cuDNN's; its layer of 3 channels needs none."""
    two = [layer.stride] * 2, [layer.kernel // 2] * 2, [1, 1]
    density, size = job.dense_problem.density, (layer.size, layer.size)
    kept = weight.clone()
    assert job.sources is not None
    is_kept = torch.zeros(weight.numel(), dtype=torch.bool)
    is_kept[job.sources[job.mask]] = True
    kept.view(-1)[~is_kept.to(x.device)] = 0
    generator = torch.Generator().manual_seed(int(1e6 * density))
    grad = torch.randn(1, layer.out_channels, *size, generator=generator).to(x.device, x.dtype)
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
    sparse_ms = 1e3 * choice.sparse_seconds if choice.sparse_seconds < float("inf") else None
    return {"sparse_ms": sparse_ms, "dense_ms": 1e3 * choice.dense_seconds, "chosen": choice.kernel}


def timed(call: Callable[[], Tensor], device: torch.device) -> dict[str, float]:
    """Median milliseconds of a call: replayed as a CUDA graph with a warm cache, and with a cold one."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        elapsed = 1e3 * (time.perf_counter() - begin)
        return {"warm_ms": elapsed, "cold_ms": elapsed}
    replay, flush = captured(call, device), torch.empty(_COLD_BYTES, dtype=torch.uint8, device=device)
    return {
        "warm_ms": 1e3 * statistics.median(replay_seconds(replay, _REPLAYS)),
        "cold_ms": 1e3 * statistics.median(replay_seconds(replay, _REPLAYS, flush.zero_)),
    }


def print_verdict(rows: list[Row]) -> None:
    """Per dtype and ratio: the layers' sum against cuDNN's, each layer taking the faster, and how the model did."""
    write = sys.stdout.write
    for dtype, ratio in sorted({(row["dtype"], row["ratio"]) for row in rows}):
        here = [row for row in rows if (row["dtype"], row["ratio"]) == (dtype, ratio) and row["sparse"]]
        if not here:
            continue
        speedups, sums = {}, {}
        for cache in ("warm", "cold"):
            dense = [min(t[f"{cache}_ms"] for mode, t in r["dense"].items() if mode.startswith(dtype)) for r in here]
            sparse = [row["sparse"][f"{cache}_ms"] for row in here]
            dense_sum = sum(row["count"] * ms for row, ms in zip(here, dense, strict=True))
            faster = sum(row["count"] * min(*both) for row, *both in zip(here, dense, sparse, strict=True))
            speedups[cache], sums[cache] = dense_sum / faster, (faster, dense_sum)
        wins = sum(row["sparse"]["warm_ms"] < row["dense"][row["strongest"]]["warm_ms"] for row in here)
        to_model = sum(row["sparse"]["warm_ms"] for row in here) / sum(row["modeled_ms"] for row in here)
        gradients = [(row["count"], row["input_grad"]) for row in here]
        dense_grad = sum(count * g["dense_ms"] for count, g in gradients)
        faster_grad = sum(count * min(g["dense_ms"], g["sparse_ms"] or g["dense_ms"]) for count, g in gradients)
        write(
            f"{dtype}, {ratio} % zeros: convolutions {sums['warm'][0]:.2f} ms, cuDNN's {sums['warm'][1]:.2f} ms, "
            f"{speedups['warm']:.2f}× (cold {speedups['cold']:.2f}×); faster in {wins} of {len(here)} shapes; "
            f"measured / modeled {to_model:.2f}; gradients to the input {dense_grad / faster_grad:.2f}×\n"
        )
    write(f"{len(rows)} rows of layers, all within their dtype's rounding of float64\n")


if __name__ == "__main__":
    main()
