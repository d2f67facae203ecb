"""Dense ways to run the same model: what prunekit is compared with."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

#: Runs a model on its input and returns its outputs.
Call = Callable[[], "tuple[Tensor, ...]"]


@dataclass(frozen=True)
class Peer:
    """One dense way.

    Attributes:
        name: For people.
        modules: What must be importable for it.
        build: Binds it to a model in eval mode and an input [N, C, H, W]; gradients are off.
    """

    name: str
    modules: tuple[str, ...]
    build: Callable[[nn.Module, Tensor], Call]

    @property
    def missing(self) -> str | None:
        """Why it cannot run here, and how to get it; None where it can."""
        absent = [module for module in self.modules if importlib.util.find_spec(module) is None]
        return f"{' and '.join(absent)} not installed (pip install 'prunekit[peers]')" if absent else None


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return a model's outputs as a tuple, also where there is but one."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def torch_eager(model: nn.Module, x: Tensor) -> Call:
    """Run the model as it is."""
    return lambda: as_tuple(model(x))


def torch_folded(model: nn.Module, x: Tensor) -> Call:
    """Run eager with BatchNorm folded into convolutions, channels last."""
    folded: Any = fuse(model)
    folded.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: as_tuple(folded(x))


def torch_compiled(model: nn.Module, x: Tensor) -> Call:
    """Run torch.compile with freezing, channels last: BatchNorm folded, weights prepacked, activations fused."""
    torch._dynamo.reset()
    channels_last: Any = copy.deepcopy(model)
    channels_last.to(memory_format=torch.channels_last)
    compiled: Any = torch.compile(channels_last, options={"freezing": True})
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: as_tuple(compiled(x))


def onnx_runtime(model: nn.Module, x: Tensor) -> Call:
    """Run ONNX Runtime's CPU provider with all optimizations."""
    import onnxruntime

    program = _exported(model, x)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: tuple(torch.from_numpy(output) for output in session.run(None, feed))


def _exported(model: nn.Module, x: Tensor) -> Any:
    """Export to ONNX, without the exporter's remarks on packages that the model has no use for."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    finally:
        log.setLevel(level)


def openvino(model: nn.Module, x: Tensor) -> Call:
    """Run OpenVINO in float32, tuned for latency."""
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    program = ov.convert_model(model, example_input=x, input=[list(x.shape)])
    compiled = ov.Core().compile_model(program, "CPU", settings)
    request, feed = compiled.create_infer_request(), x.numpy()

    def run() -> tuple[Tensor, ...]:
        outputs = request.infer([feed], share_inputs=True, share_outputs=True)
        return tuple(torch.from_numpy(np.asarray(outputs[index])) for index in range(len(outputs)))

    return run


EAGER = "eager"
#: By the name that the command line knows.
PEERS: dict[str, Peer] = {
    EAGER: Peer("torch eager", (), torch_eager),
    "folded": Peer("torch eager, folded", (), torch_folded),
    "compile": Peer("torch.compile", (), torch_compiled),
    "onnxruntime": Peer("ONNX Runtime", ("onnx", "onnxscript", "onnxruntime"), onnx_runtime),
    "openvino": Peer("OpenVINO", ("openvino",), openvino),
}
