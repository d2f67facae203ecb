"""accelerate on an NVIDIA GPU: the engine's graph, a kernel for each convolution, one CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.comparison import MAX_RELATIVE_RMS, Comparison, check_equal, compare
from prunekit.engine.capture import CaptureError, capture_any_size
from prunekit.engine.fusing import fuse
from prunekit.engine.gpu_nodes import LayerKernel
from prunekit.engine.gpu_program import GpuModel, GpuProgram, choose_layers
from prunekit.engine.graph import Graph, Node
from prunekit.errors import InputError
from prunekit.nn.acceleration_report import AccelerationReport, LayerReport
from prunekit.nn.fusion import has_foreign_hooks, replace_module
from prunekit.nn.masked_conv2d import MaskedConv2d
from prunekit.nn.reference import float32_copy, widened, without_autocast
from prunekit.nn.whole_graph import check_hooks, foreign_operators
from prunekit.ops.cuda.cache import KernelCache
from prunekit.ops.cuda.choice import exact_float32, floor_seconds
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.dispatch import CudaDevice, device_of
from prunekit.ops.cuda.sources import missing_kernels
from prunekit.structure import in_float64
from prunekit.timing import Timing, time_in_turn

_WHOLE_MODEL_RUNS = 10
# Of half precision's rounding, the most that two ways through a deep net may differ by where none is exact.
_ROUNDINGS = 16


def check_gpu_arguments(*, whole_graph: bool, weight_dtype: torch.dtype) -> None:
    """Refuse what `accelerate` cannot do on a GPU.

    Raises:
        InputError: neither the CUDA kernels nor Triton are there, or an argument is for the CPU only.
    """
    if reason := missing_kernels():
        raise InputError(f"accelerate on a GPU needs prunekit's CUDA kernels or Triton, but {reason}.")
    if not whole_graph or weight_dtype != torch.float32:
        raise InputError("whole_graph=False and weight_dtype are for models on the CPU; this one is on a GPU.")


def accelerate_on_gpu(
    model: nn.Module,
    inputs: Sequence[Tensor],
    expected: object,
    tuning_seconds: float,
    tuning_cache: Path | Literal["default"] | None,
    progress: Callable[[int, int], None] | None,
    device: CudaDevice | None = None,
) -> nn.Module:
    """Return the model on the engine's graph, or `model` itself with a note where it cannot be or is not faster.

    Args:
        model: a frozen copy, in eval mode, on the inputs' device.
        inputs: the example.
        expected: the model's output, in exact float32.
        tuning_seconds: for measuring kernels.
        tuning_cache: file of measurements of earlier runs; None keeps none, "default" is the user's.
        progress: called with (convolutions chosen, all of them).
        device: where to run; None: the inputs' GPU.

    Raises:
        WrongOutputError: the outputs differ by more than 1e-4 relative RMS; in half precision, from those of the model
            in float32 by more than twice what the model's own do and one rounding. Or a kernel's differ from cuDNN's.
    """
    device = device or device_of(inputs[0])
    assert device is not None, "check_gpu_arguments comes first"
    cache = KernelCache.default() if tuning_cache == "default" else KernelCache(tuning_cache and Path(tuning_cache))
    begin = time.perf_counter()
    _make_dense(model)
    try:
        graph, folded = build_graph(model, inputs)
    except CaptureError as error:
        notes = [f"not run as a whole graph: {error}"]
        times = _time({"before": model}, inputs)
        return _with_report(model, [], device.gpu, 0, times, expected, inputs, notes, 0.0)
    kernels = choose_layers(graph, inputs, device, cache, tuning_seconds, progress or (lambda done, total: None))
    seconds = time.perf_counter() - begin
    rows = [_row(graph, node, kernels[node.name], device.gpu) for node in graph.convolutions()]
    program = GpuProgram(graph, kernels, device.ops, device.gpu)
    with exact_float32():
        reference, most = _reference(model, inputs, expected)
        outputs = GpuModel(program, inputs, captures=False)(*inputs)
        check_equal(in_float64(reference), in_float64(outputs), "the accelerated model", most)
    fast = GpuModel(program, inputs, captures=inputs[0].is_cuda)
    times = _time({"before": model, "after": fast}, inputs)
    foreign = foreign_operators(graph)
    beside = foreign and f"beside convolutions, torch runs {foreign} as they are"
    notes = [note for note in (cache.note, fast.note, beside, _who_competes(device.gpu)) if note]
    if times["before"].median_ms < times["after"].median_ms:
        notes.append("the model's own forward was measured faster, and kept")
        return _with_report(model, rows, device.gpu, 0, {"before": times["before"]}, expected, inputs, notes, seconds)
    return _with_report(fast, rows, device.gpu, folded, times, expected, inputs, notes, seconds)


def _who_competes(gpu: Gpu) -> str | None:
    return None if "cuda" in gpu.sources else "prunekit's CUDA kernels were not built: those in Triton compete alone"


def build_graph(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Graph, int]:
    """Capture and fuse; return the graph and how many BatchNorms were folded.

    Raises:
        CaptureError: torch.export fails, or a module has a hook.
    """
    check_hooks(model, "the graph")
    graph = capture_any_size(model, inputs, dtype_of(inputs))
    return graph, fuse(graph)


def dtype_of(inputs: Sequence[Tensor]) -> torch.dtype:
    """Return the images' dtype, in which the graph computes."""
    return next((x.dtype for x in inputs if x.dim() == 4), torch.float32)


def _difference(exact: object, rounded: object) -> Comparison:
    """Compare outputs that may be of two dtypes."""
    return compare(in_float64(exact), in_float64(rounded))


def _reference(model: nn.Module, inputs: Sequence[Tensor], expected: object) -> tuple[object, float]:
    """Return what outputs are compared with, and by how much they may differ."""
    halves = {leaf.dtype for leaf in tree_leaves(expected) if isinstance(leaf, Tensor) and leaf.itemsize == 2}
    if not halves:
        return expected, MAX_RELATIVE_RMS
    rounding = max(torch.finfo(dtype).eps for dtype in halves)
    try:
        with without_autocast():
            exact = float32_copy(model)(*map(widened, inputs))
    except Exception:  # a forward may name its dtype
        return expected, _ROUNDINGS * rounding
    return exact, 2 * _difference(exact, expected).relative_rms + rounding


def _make_dense(model: nn.Module) -> None:
    """Put convolutions with zeros where MaskedConv2d are; the graph knows the former."""
    for name, module in list(model.named_modules()):
        is_plain = isinstance(module, MaskedConv2d) and module.activation == "none" and not has_foreign_hooks(module)
        if is_plain and name:
            replace_module(model, name, module.to_dense().requires_grad_(False))


def _time(models: dict[str, nn.Module], inputs: Sequence[Tensor]) -> dict[str, Timing]:
    def call(model: nn.Module) -> Callable[[], object]:
        def run() -> None:
            model(*inputs)
            if inputs[0].is_cuda:
                torch.cuda.synchronize(inputs[0].device)

        return run

    return time_in_turn({name: call(model) for name, model in models.items()}, _WHOLE_MODEL_RUNS)


def _with_report(
    fast: nn.Module,
    rows: list[LayerReport],
    gpu: Gpu,
    folded: int,
    times: dict[str, Timing],
    expected: object,
    inputs: Sequence[Tensor],
    notes: list[str],
    seconds: float,
) -> nn.Module:
    compared = _difference(expected, fast(*inputs))
    fast.report = AccelerationReport(  # type: ignore[assignment]
        rows=rows,
        threads=torch.get_num_threads(),
        instruction_set=None,
        batch_norms_folded=folded,
        before_ms=times["before"].median_ms,
        after_ms=times.get("after", times["before"]).median_ms,
        relative_rms=compared.relative_rms,
        comparison=compared,
        notes=notes,
        engine="cuda graph" if isinstance(fast, GpuModel) else "the model's own",
        peak_gflops=gpu.fma_peak_gflops if dtype_of(inputs).itemsize == 4 else gpu.tensor_peak_gflops,
        tuning_seconds=seconds,
        gpu=gpu.name,
    )
    return fast


def _row(graph: Graph, node: Node, kernel: LayerKernel, gpu: Gpu) -> LayerReport:
    weight, size, output = (
        graph.constants[node.attributes["weight"]],
        graph.sizes[node.inputs[0]],
        graph.sizes[node.name],
    )
    batch = kernel.problem.batch if kernel.problem else 1
    nnz, choice = int(weight.count_nonzero()), kernel.choice
    packed = [] if kernel.filter is None else [t for t in kernel.filter.arguments() if isinstance(t, Tensor)]
    weight_bytes = sum(t.nbytes for t in packed) if packed else weight.nbytes
    elements = size[0] * size[1] * size[2] + len(node.inputs) * output[0] * output[1] * output[2]
    floor = floor_seconds(kernel.problem, gpu, weight.dtype) if kernel.problem else None
    return LayerReport(
        name=node.layer or node.name,
        input_shape=(batch, *size),
        weight_shape=tuple(weight.shape),
        density=nnz / max(1, weight.numel()),
        implementation=choice.kernel if choice.launch is None else f"{choice.kernel} {choice.launch}",
        dense_ms=1e3 * choice.dense_seconds,
        sparse_ms=1e3 * choice.sparse_seconds,
        reason=choice.reason,
        kept_macs=nnz * output[1] * output[2],
        num_bytes=weight_bytes + weight.itemsize * batch * elements,
        floor_ms=None if floor is None else 1e3 * floor,
    )
