"""accelerate: a network on the implementation that measured fastest on this machine.

    fast = accelerate(model, example_input)
    print(fast.report)

The exact zeros of each weight are its mask. Nothing is timed before its output was found equal, nothing is chosen by
rule where it can be measured, and whatever cannot be made faster is left to the model's own code with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunekit.engine.gpu_program import GpuModel
from prunekit.errors import InputError, first_line
from prunekit.nn.accelerate_gpu import accelerate_on_gpu, check_gpu_arguments
from prunekit.nn.acceleration_report import AccelerationReport
from prunekit.nn.calls import Call, preserved_random_state
from prunekit.nn.candidates import Options, fastest, left_alone, on_the_engine, uncopied
from prunekit.nn.evaluating import evaluating
from prunekit.nn.int8 import calibration_inputs, check_precision
from prunekit.nn.model_copies import CopyError, copied, has_computed_weights, with_plain_weights
from prunekit.nn.parts import check_names
from prunekit.nn.reference import NotComparable, reference_of
from prunekit.nn.unwrapping import unwrap, unwrap_submodules
from prunekit.nn.whole_graph import on_tensors
from prunekit.ops.cuda.choice import exact_float32
from prunekit.structure import flatten


def accelerate(
    model: nn.Module,
    example_input: object = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    parts: Sequence[str] | None = None,
    whole_graph: bool = True,
    weight_dtype: torch.dtype = torch.float32,
    precision: Literal["float32", "int8"] = "float32",
    calibration: object = None,
    calibration_method: Literal["minmax", "percentile", "mse"] = "mse",
    tuning_seconds: float = 60.0,
    tuning_cache: Path | Literal["default"] | None = "default",
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Return an inference version of `model` that is as fast as its zeros allow; what is handed over stays as it is.

    The whole network is captured once and runs on prunekit's engine (an `AcceleratedModel`): BatchNorm folded,
    activations and residual additions fused, convolutions on their kept weights only, scheduled as measured best on
    this machine. Where it cannot be captured, or was measured slower, the result is a copy of the model's own class in
    which convolutions that measured faster on their packed filter are MaskedConv2d; where nothing is faster, a plain
    copy. `report` (an `AccelerationReport`) says what was chosen, why, and what was compared. Whatever fails on the way
    ends in a note there, never in an exception.

    The result is called as the model is and returns the same classes. It is compared with the model on the example and
    on random numbers of the same shapes and dtypes. A model in half precision, or with autocast in its forward, runs on
    the engine in float32 with casts at its doors, and is compared with its own float32 copy.

    A model on a GPU becomes a `GpuModel`: the same graph, each convolution on the kernel that is fastest there,
    captured as a CUDA graph; it may be in float16 or bfloat16.

    Args:
        model: any module on the CPU or on one NVIDIA GPU; its convolutions may have been pruned by anyone and by any
            means.
        example_input: the forward's argument, or a list or tuple of its positional ones, of the size to be fast at. A
            forward whose only argument is a list takes it inside a tuple: `([image, image],)`.
        example_kwargs: the forward's keyword arguments. Arguments that are no tensors are constants of the result.
        parts: names of submodules to put on the engine, such as `["backbone"]`, in a model that keeps its class, its
            methods and its own forward; each is captured on the calls that it receives on the example and compared with
            itself. None tries the whole model, and then the largest submodules that can be there.
        whole_graph: False keeps the model's class and its own forward.
        weight_dtype: torch.bfloat16 stores kept weights in half the bytes; sums, biases and pixels stay float32. The
            weights are rounded to 8 bits of significand after BatchNorm is folded, and `report.relative_rms` says what
            that does to the outputs.
        precision: "int8" runs convolutions on 8-bit levels and weights, with exact 32-bit sums, wherever a layer is
            exact enough and measured faster so; the rest stays float32 in the same graph. `report` has the scale, zero
            point and noise of each layer, and `report.relative_rms` what int8 does to the outputs. On a processor
            without an instruction for it, and for a model that is not captured as a whole, the result is float32 and a
            note says so. On the CPU.
        calibration: inputs that the ranges of all values are observed on, with "int8": a tensor [N, ...], or an
            iterable of forward arguments. Some hundred images are usual, others than those of an evaluation.
        calibration_method: how a range is found: all that was seen, without the outermost 0.01 % at each end, or with
            the least squared error.
        tuning_seconds: time for choosing; what is not chosen then keeps a rule of thumb.
        tuning_cache: file of choices of earlier runs; None keeps none, "default" is the user's cache folder's.
        progress: called with (convolution shapes tuned, all of them).

    Raises:
        InputError: the model is neither on the CPU nor on one GPU, does not run on the example, or its output there
            holds no tensor or is not finite, or `weight_dtype` or `precision` is another one, or calibration inputs are
            missing, do not fit the example or are not finite; on a GPU also without both the CUDA kernels and Triton.
    """
    if weight_dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"accelerate expects weight_dtype torch.float32 or torch.bfloat16; got {weight_dtype}.")
    check_precision(precision, calibration_method)
    if not isinstance(model, nn.Module):
        raise InputError(f"accelerate expects model to be a torch.nn.Module; got {type(model).__name__}.")
    model, unwrapped = unwrap(model)
    names = None if parts is None else tuple(check_names(model, parts))
    example = Call.of_example(model, example_input, example_kwargs)
    _check_devices(model, example.tensors)
    if precision == "int8" and (weight_dtype != torch.float32 or any(x.is_cuda for x in example.tensors)):
        raise InputError('accelerate expects a model on the CPU and float32 weights with precision="int8".')
    inputs = None if precision == "float32" else calibration_inputs(calibration, example)
    options = Options(
        whole_graph, weight_dtype, tuning_seconds, tuning_cache, progress, names, inputs, calibration_method
    )
    with torch.no_grad(), preserved_random_state(), torch.autocast("cpu", enabled=False):
        if any(x.is_cuda for x in example.tensors):
            check_gpu_arguments(whole_graph=whole_graph, weight_dtype=weight_dtype)
            return _on_gpu(model, example, options)
        try:
            own = copied(model)
        except CopyError as error:
            with evaluating(model):
                return uncopied(model, example, f"the model cannot be copied ({error}), so it is called as it is")
        unwrap_submodules(own)
        fast = accelerate_copy(own, example, options)
        if isinstance(fast.report, AccelerationReport):
            fast.report.notes[:0] = unwrapped
        return fast


def accelerate_copy(model: nn.Module, example: Call, options: Options) -> nn.Module:
    """Accelerate a frozen copy of a model, in eval mode, on the CPU; without gradients.

    The copy is not run, so that it can be the result.

    Raises:
        InputError: it does not run on the example, or its output there holds no tensor or is not finite.
    """
    runs = copied(model)
    example, outputs = _answered(runs, example)
    try:
        reference = reference_of(runs, example, outputs)
    except NotComparable as reason:
        return left_alone(model, runs, example, str(reason))
    return fastest(model, runs, reference, options)


def on_engine_untimed(model: nn.Module, example_input: object, tuning_seconds: float) -> nn.Module:
    """Return what `accelerate` does where the whole network is captured, found right in the same way, but not timed.

    So it takes a third of the time, without a word on whether the model's own code would be faster. On the CPU.

    Raises:
        Exception: Whatever is why the network cannot be one graph on the engine.
    """
    model, _ = unwrap(model)
    example = Call.of_example(model, example_input, None)
    with torch.no_grad(), preserved_random_state(), torch.autocast("cpu", enabled=False):
        own = copied(model)
        unwrap_submodules(own)
        runs = copied(own)
        example, outputs = _answered(runs, example)
        reference = reference_of(runs, example, outputs)
        return on_the_engine(own, reference, Options(tuning_seconds=tuning_seconds)).model


def _answered(runs: nn.Module, example: Call) -> tuple[Call, Any]:
    """Return the call with what is known of its results, and the outputs."""
    outputs, is_written = _answer(runs, example)
    return Call(example.signature.with_results(outputs), example.tensors, is_written), outputs


def _answer(model: nn.Module, example: Call) -> tuple[Any, bool]:
    """Return the model's outputs on the example, and whether it wrote into its arguments.

    Raises:
        InputError: it does not run, or its output holds no tensor or is not finite.
    """
    try:
        outputs, is_written = example.writes(model)
    except Exception as error:  # a foreign forward
        raise InputError(
            f"the model does not run on example_input of shape {example.words}: {first_line(error)}."
        ) from error
    try:
        tensors = flatten(outputs)[0]
    except ValueError as error:  # an object that holds itself
        raise InputError(f"the model's outputs cannot be compared: {first_line(error)}.") from error
    if not tensors:
        raise InputError(
            f"accelerate expects a model that returns tensors, in containers of any kind; got {type(outputs).__name__}."
        )
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        named = [*model.named_parameters(), *model.named_buffers()]
        cause = next((f", and neither is its {name}" for name, t in named if not bool(t.isfinite().all())), "")
        raise InputError(
            "accelerate compares its result with the model's output on example_input, "
            f"and that is not finite (nan or inf){cause}."
        )
    return outputs, is_written


def _on_gpu(model: nn.Module, example: Call, options: Options) -> nn.Module:
    try:
        own = copied(model)
    except CopyError as error:
        raise InputError(f"accelerate cannot copy the model ({type(model).__name__}): {error}") from error
    plain = with_plain_weights(own) if has_computed_weights(own) else copied(own)
    with exact_float32():
        outputs, is_written = _answer(plain, example)
    signature, inputs = example.signature.with_results(outputs), list(example.tensors)
    expected = tuple(flatten(outputs)[0])
    try:
        with on_tensors(plain, signature, is_written):
            fast = accelerate_on_gpu(
                plain, inputs, expected, options.tuning_seconds, options.tuning_cache, options.progress
            )
    except Exception as error:  # whatever fails there, the model itself runs
        return left_alone(own, plain, example, f"not run as a whole graph: {first_line(error)}")
    if isinstance(fast, GpuModel):
        fast.signature = signature
        return fast
    own.report = fast.report
    return own


def _check_devices(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    devices = {t.device for t in [*model.parameters(), *model.buffers(), *inputs]}
    if len(devices) > 1 or {device.type for device in devices} - {"cpu", "cuda"}:
        raise InputError(
            "accelerate runs on the CPU or on one NVIDIA GPU; "
            f"model and example_input are on {', '.join(sorted(map(str, devices)))}."
        )
