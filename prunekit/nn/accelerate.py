"""accelerate: a network on the implementation that measured fastest on this machine.

    fast = accelerate(model, example_input)
    print(fast.report)

The exact zeros of each weight are its mask. Nothing is timed before its output was found equal, and nothing is chosen
by rule where it can be measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.engine.capture import CaptureError
from prunekit.engine.tuning_cache import TuningCache
from prunekit.errors import InputError
from prunekit.nn.accelerate_gpu import accelerate_on_gpu, check_gpu_arguments
from prunekit.nn.acceleration_report import AccelerationReport, LayerReport
from prunekit.nn.comparing import check_equal, largest_difference
from prunekit.nn.fusion import (
    Followers,
    Fusible,
    find_fusible,
    fold_batch_norms,
    has_foreign_hooks,
    replace_module,
)
from prunekit.nn.masked_conv2d import MaskedConv2d
from prunekit.nn.tuning import tune_layer
from prunekit.nn.whole_graph import build_whole_graph, layer_reports
from prunekit.ops import native, native_status
from prunekit.ops.cuda.kernel_choice import exact_float32
from prunekit.timing import Timing, time_in_turn

_WHOLE_MODEL_RUNS = 3
# Below this speed-up of the whole graph the model's own forward is measured too.
_CLEARLY_FASTER = 1.4


def accelerate(
    model: nn.Module,
    example_input: Tensor | Sequence[Tensor],
    *,
    whole_graph: bool = True,
    weight_dtype: torch.dtype = torch.float32,
    tuning_seconds: float = 60.0,
    tuning_cache: Path | Literal["default"] | None = "default",
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Return an inference version of `model` that is as fast as its zeros allow; the model itself is left alone.

    The whole network is captured once and runs on prunekit's engine (an `AcceleratedModel`): BatchNorm folded,
    activations and residual additions fused, convolutions on their kept weights only, cut as measured best on this
    machine. Where it cannot be captured, or was measured slower, the result is a copy of the model's own class in
    which convolutions that measured faster on their packed filter are MaskedConv2d. `report` (an
    `AccelerationReport`) says what was chosen, and why. A model on a GPU becomes a `GpuModel`: the same graph, each
    convolution on the kernel that is fastest there, captured as a CUDA graph; it may be in float16 or bfloat16.

    Args:
        model: any module on the CPU or on one NVIDIA GPU; its convolutions may have been pruned by anyone and by any
            means.
        example_input: the forward's tensor, or a sequence of its positional arguments, of the size to be fast at.
        whole_graph: False keeps the model's class and its own forward.
        weight_dtype: torch.bfloat16 stores kept weights in half the bytes; sums, biases and pixels stay float32. The
            weights are rounded to 8 bits of significand after BatchNorm is folded, and `report.relative_rms` says what
            that does to the outputs.
        tuning_seconds: time for choosing; what is not chosen then keeps a rule of thumb.
        tuning_cache: file of choices of earlier runs; None keeps none, "default" is the user's cache folder's.
        progress: called with (convolution shapes tuned, all of them).

    Raises:
        InputError: the model is neither on the CPU nor on one GPU, does not run on the example, or its output there is
            not finite, or `weight_dtype` is another one; on a GPU also where the CUDA kernels were not built.
        WrongOutputError: the result's outputs differ by more than 1e-4 relative RMS from the model's, or from those of
            the rounded weights; in half precision on a GPU, by more than the model's own rounding explains.
    """
    if weight_dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"accelerate expects weight_dtype torch.float32 or torch.bfloat16; got {weight_dtype}.")
    inputs = _inputs_of(model, example_input)
    if any(x.is_cuda for x in inputs):
        check_gpu_arguments(whole_graph=whole_graph, weight_dtype=weight_dtype)
    with torch.no_grad(), _evaluating(model):
        with exact_float32():
            expected = _run(model, inputs)
        _check_finite(model, expected)
        if any(x.is_cuda for x in inputs):
            plain = _inference_copy(model)
            return accelerate_on_gpu(plain, inputs, expected, tuning_seconds, tuning_cache, progress)
        modules_notes = [] if weight_dtype == torch.float32 else ["weights stay float32 outside the engine"]
        if not whole_graph:
            return _accelerate_modules(model, inputs, expected, modules_notes)
        peak = native.fma_peak_gflops() if native.is_available() else 0.0
        cache = TuningCache.default() if tuning_cache == "default" else TuningCache(tuning_cache and Path(tuning_cache))
        try:
            plain = _inference_copy(model) if _has_derived_weights(model) else model
            built = build_whole_graph(
                plain, inputs, tuning_seconds, cache, progress or (lambda done, total: None), weight_dtype
            )
        except CaptureError as error:
            notes = [f"not run as a whole graph: {error}", *modules_notes]
            return _accelerate_modules(model, inputs, expected, notes)
        fast = built.model
        if built.exact is None or built.rounded is None:
            times = _compare(model, fast, inputs, expected)
        else:
            check_equal(expected, built.exact(*inputs))
            times = _compare(model, fast, inputs, built.rounded(*inputs))
        if times["before"].median_ms < _CLEARLY_FASTER * times["after"].median_ms:
            modules = _accelerate_modules(model, inputs, expected, modules_notes)
            both = time_in_turn(
                {"modules": lambda: modules(*inputs), "graph": lambda: fast(*inputs)}, _WHOLE_MODEL_RUNS
            )
            if both["modules"].median_ms < both["graph"].median_ms:
                assert isinstance(modules.report, AccelerationReport)
                foreign = [f", in which {note}" for note in built.notes if note.startswith("torch runs ")]
                modules.report.notes.append(
                    f"the model's own forward was measured faster than the whole graph{''.join(foreign)}"
                )
                return modules
        peak = max(peak, native.fma_peak_gflops())  # another process may have slowed one of the two down
        rows, other = layer_reports(fast, inputs, peak)
        fast.report = AccelerationReport(
            rows=rows,
            threads=torch.get_num_threads(),
            instruction_set=native_status().instruction_set,
            batch_norms_folded=built.batch_norms_folded,
            before_ms=times["before"].median_ms,
            after_ms=times["after"].median_ms,
            relative_rms=largest_difference(expected, fast(*inputs)),
            notes=built.notes,
            engine="whole graph",
            peak_gflops=peak,
            other_ms=other,
            tuning_seconds=built.seconds,
        )
        return fast


def _accelerate_modules(
    model: nn.Module, inputs: Sequence[Tensor], expected: object, notes: Sequence[str]
) -> nn.Module:
    """Keep the model's class; put MaskedConv2d where that measured faster."""
    fast = _inference_copy(model)
    fusible = find_fusible(fast)
    folded = fold_batch_norms(fast, fusible)
    rows = _tune_layers(fast, inputs, fusible)
    times = _compare(model, fast, inputs, expected)
    fast.report = AccelerationReport(  # type: ignore[assignment]
        rows=rows,
        threads=torch.get_num_threads(),
        instruction_set=native_status().instruction_set,
        batch_norms_folded=folded,
        before_ms=times["before"].median_ms,
        after_ms=times["after"].median_ms,
        relative_rms=largest_difference(expected, fast(*inputs)),
        notes=[*notes, *(note for note in (native_status().reason, fusible.reason) if note)],
    )
    return fast


def _compare(model: nn.Module, fast: nn.Module, inputs: Sequence[Tensor], expected: object) -> dict[str, Timing]:
    """Time both in turn, after their outputs were found equal.

    Raises:
        WrongOutputError: they are not.
    """
    check_equal(expected, fast(*inputs))
    return time_in_turn({"before": lambda: model(*inputs), "after": lambda: fast(*inputs)}, _WHOLE_MODEL_RUNS)


def _inputs_of(model: object, example_input: object) -> tuple[Tensor, ...]:
    if not isinstance(model, nn.Module):
        raise InputError(f"accelerate expects model to be a torch.nn.Module; got {type(model).__name__}.")
    if isinstance(example_input, Tensor):
        inputs: tuple[object, ...] = (example_input,)
    else:
        inputs = tuple(example_input) if isinstance(example_input, Sequence) else (example_input,)
    tensors = tuple(x for x in inputs if isinstance(x, Tensor))
    if len(tensors) < len(inputs):
        found = ", ".join(type(x).__name__ for x in inputs)
        raise InputError(f"accelerate expects example_input to be a tensor or a sequence of tensors; got {found}.")
    _check_devices(model, tensors)
    return tensors


def _check_finite(model: nn.Module, expected: object) -> None:
    if all(bool(leaf.isfinite().all()) for leaf in tree_leaves(expected) if isinstance(leaf, Tensor)):
        return
    named = [*model.named_parameters(), *model.named_buffers()]
    cause = next((f", and neither is its {name}" for name, t in named if not bool(t.isfinite().all())), "")
    raise InputError(
        "accelerate compares its result with the model's output on example_input, "
        f"and that is not finite (nan or inf){cause}."
    )


def _check_devices(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    devices = {t.device for t in [*model.parameters(), *model.buffers(), *inputs]}
    if len(devices) > 1 or {device.type for device in devices} - {"cpu", "cuda"}:
        raise InputError(
            "accelerate runs on the CPU or on one NVIDIA GPU; "
            f"model and example_input are on {', '.join(sorted(map(str, devices)))}."
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _run(model: nn.Module, inputs: Sequence[Tensor]) -> object:
    try:
        return model(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise InputError(f"the model does not run on example_input of shape {shapes}: {error}") from error


def _inference_copy(model: nn.Module) -> nn.Module:
    """Copy the model frozen, with pruned and parametrised convolutions made plain ones of the same weight."""
    try:
        fast = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:  # deepcopy runs foreign code
        raise InputError(f"accelerate cannot copy the model ({type(model).__name__}): {error}") from error
    for name, conv in _convolutions(fast).items():
        is_derived = "weight" not in conv._parameters
        if is_derived and not has_foreign_hooks(conv):
            plain = MaskedConv2d.from_dense(conv).to_dense().requires_grad_(False)
            replace_module(fast, name, plain)
    return fast


def _has_derived_weights(model: nn.Module) -> bool:
    """Tell whether a convolution's weight is computed, as pruning masks and parametrisations do it."""
    return any("weight" not in conv._parameters for conv in _convolutions(model).values())


def _convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and name}


def _tune_layers(fast: nn.Module, inputs: Sequence[Tensor], fusible: Fusible) -> list[LayerReport]:
    """Run the model once; time each convolution when its input arrives; then swap in what won."""
    rows: dict[str, LayerReport] = {}
    winners: dict[str, MaskedConv2d] = {}

    def tune(name: str, conv: nn.Conv2d, x: Tensor) -> None:
        if name not in rows:
            activation = fusible.followers.get(name, Followers()).activation
            follower = fast.get_submodule(activation) if activation else None
            rows[name], winner = tune_layer(name, conv, follower, x.detach())
            if winner is not None:
                winners[name] = winner

    hooks = [
        conv.register_forward_pre_hook(lambda conv, args, name=name: tune(name, conv, args[0]))
        for name, conv in _convolutions(fast).items()
        if not has_foreign_hooks(conv)
    ]
    fast(*inputs)
    for hook in hooks:
        hook.remove()
    for name, winner in winners.items():
        replace_module(fast, name, winner)
        activation = fusible.followers.get(name, Followers()).activation
        if activation:
            replace_module(fast, activation, nn.Identity())
    return list(rows.values())
