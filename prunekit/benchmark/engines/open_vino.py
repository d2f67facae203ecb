"""OpenVINO on the CPU, tuned for latency: float32, bfloat16, and int8 quantized by NNCF."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.benchmark.engines.calibration import NUM_INPUTS, calibration_inputs
from prunekit.benchmark.engines.calls import Call, UnavailableError, quiet
from prunekit.benchmark.engines.precisions import Precision, check_layers, int8_saturates

_DEVICE = "CPU"
# What OpenVINO says that a device can do, and what it says that a layer runs in.
_CAPABILITIES: dict[Precision, str] = {"float32": "FP32", "bfloat16": "BF16", "int8": "INT8"}
_RUNTIME: dict[Precision, tuple[str, ...]] = {"float32": ("f32",), "bfloat16": ("bf16",), "int8": ("i8", "u8")}
_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


def openvino(model: nn.Module, x: Tensor) -> Call:
    """Run OpenVINO in float32, which is not its default on processors with bfloat16."""
    return _call(_compiled(_program(model, x), INFERENCE_PRECISION_HINT="f32"), x)


def openvino_bfloat16(model: nn.Module, x: Tensor) -> Call:
    """Run OpenVINO in bfloat16.

    Raises:
        UnavailableError: It would run float32 on this processor, which it does without a word.
    """
    _check_capability("bfloat16")
    compiled = _compiled(_program(model, x), INFERENCE_PRECISION_HINT="bf16")
    _check_runtime(compiled, "bfloat16")
    return _call(compiled, x)


def openvino_int8(model: nn.Module, x: Tensor) -> Call:
    """Run OpenVINO in int8, quantized after training by NNCF: its defaults, and no sums that saturate.

    What is left in floating point runs in OpenVINO's default: bfloat16 where the processor has it.

    Raises:
        UnavailableError: Most layers would not run in int8 on this processor.
    """
    _check_capability("int8")
    compiled = _compiled(_quantized(_program(model, x), x))
    _check_runtime(compiled, "int8")
    return _call(compiled, x)


def _program(model: nn.Module, x: Tensor) -> Any:
    import openvino as ov

    return ov.convert_model(model, example_input=x, input=[list(x.shape)])


def _quantized(program: Any, x: Tensor) -> Any:
    with quiet():
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

        # By default NNCF keeps the first layer's weights to 7 bits, on every processor.
        advanced = AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE) if int8_saturates() else None
        inputs = nncf.Dataset(list(calibration_inputs(x)))
        return nncf.quantize(program, inputs, subset_size=NUM_INPUTS, advanced_parameters=advanced)


def _compiled(program: Any, **settings: str) -> Any:
    import openvino as ov

    usual = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    return ov.Core().compile_model(program, _DEVICE, {**usual, **settings})


def _check_capability(precision: Precision) -> None:
    import openvino as ov

    found = ov.Core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    if _CAPABILITIES[precision] not in found:
        raise UnavailableError(
            f"OpenVINO would not run {precision} on this processor: expected {_CAPABILITIES[precision]} among the "
            f"capabilities that it reports, got {', '.join(found)}"
        )


def _check_runtime(compiled: Any, precision: Precision) -> None:
    """Ask the compiled model what its layers run in."""
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    layers = [fact["runtimePrecision"].astype(str) for fact in facts if fact["layerType"].astype(str) in _LAYERS]
    lower = [found for found in layers if found.lower() in _RUNTIME[precision]]
    check_layers("OpenVINO", precision, len(lower), len(layers))


def _call(compiled: Any, x: Tensor) -> Call:
    request, feed = compiled.create_infer_request(), x.numpy()

    def run() -> tuple[Tensor, ...]:
        outputs = request.infer([feed], share_inputs=True, share_outputs=True)
        return tuple(torch.from_numpy(np.asarray(outputs[index])) for index in range(len(outputs)))

    return run
