"""ONNX Runtime's CPU provider with all optimizations: float32, and int8 by its own quantizer."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.benchmark.engines.calibration import calibration_inputs
from prunekit.benchmark.engines.calls import Call, quiet
from prunekit.benchmark.engines.precisions import check_layers, int8_saturates, is_arm

# Operators of an optimized graph.
_INT8_LAYERS = {"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
_FLOAT_LAYERS = {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


def onnx_runtime(model: nn.Module, x: Tensor) -> Call:
    """Run ONNX Runtime in float32."""
    return _call(_session(_exported(model, x).SerializeToString(), _options()), x)


def onnx_runtime_int8(model: nn.Module, x: Tensor) -> Call:
    """Run ONNX Runtime in int8: static, QDQ, ranges from minimum to maximum, a scale for each output channel.

    Raises:
        UnavailableError: Most layers would not run in int8.
    """
    with TemporaryDirectory() as name:
        options, optimized = _options(), Path(name) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        session = _session(str(_quantized(_exported(model, x), x, Path(name))), options)
        _check_graph(optimized)
    return _call(session, x)


def _exported(model: nn.Module, x: Tensor) -> Any:
    """Export to an ONNX ModelProto, without the exporter's remarks on packages that the model has no use for."""
    with quiet():
        program: Any = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    return program.model_proto


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return options


def _session(model: bytes | str, options: Any) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _call(session: Any, x: Tensor) -> Call:
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: tuple(torch.from_numpy(output) for output in session.run(None, feed))


def _quantized(proto: Any, x: Tensor, folder: Path) -> Path:
    """Write the quantized model into a folder and return the file."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    exported, prepared, quantized = (folder / f"{name}.onnx" for name in ("exported", "prepared", "quantized"))
    onnx.save(proto, exported)
    with quiet():
        # All sizes are known, so nothing is symbolic; the rest folds BatchNorm.
        quant_pre_process(exported, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        feeds = [{graph.input[0].name: value} for value in calibration_inputs(x)]
        quantization.quantize_static(
            prepared,
            quantized,
            _reader(feeds),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            nodes_to_exclude=_unquantizable(graph),
            **_types(),
        )
    return quantized


def _reader(feeds: list[dict[str, np.ndarray]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out the feeds one by one, then None."""

        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    return Reader()


def _types() -> dict[str, Any]:
    """Return the types that ONNX Runtime's documentation recommends for this processor."""
    from onnxruntime.quantization import QuantType

    activations = QuantType.QInt8 if is_arm() else QuantType.QUInt8
    return {"activation_type": activations, "weight_type": QuantType.QInt8, "reduce_range": int8_saturates()}


def _unquantizable(graph: Any) -> list[str]:
    """Name the nodes that read an infinite constant, such as the padding of a maximum: the quantizer makes 0 of it."""
    from onnx import numpy_helper

    infinite = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == tensor.FLOAT and not np.isfinite(numpy_helper.to_array(tensor)).all()
    }
    return [node.name for node in graph.node if infinite & set(node.input)]


def _check_graph(optimized: Path) -> None:
    """Look at what ONNX Runtime made of the quantized graph, which it fuses into integer operators where it can."""
    import onnx

    operators = [node.op_type for node in onnx.load(optimized, load_external_data=False).graph.node]
    lower = sum(operator in _INT8_LAYERS for operator in operators)
    check_layers("ONNX Runtime", "int8", lower, lower + sum(operator in _FLOAT_LAYERS for operator in operators))
