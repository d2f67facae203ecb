"""Dense ways to run the same model: what prunekit is compared with. Each is left out where it is not installed."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from importlib import metadata

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.nn.fusion import find_fusible, fold_batch_norms

#: Builds a callable that runs the model on x and returns its first output as a tensor.
Peer = Callable[[nn.Module, Tensor], Callable[[], Tensor]]


def torch_eager(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Run the model as it is."""
    return lambda: model(x)[0]


def torch_folded(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Run eager with BatchNorm folded, channels last."""
    folded = _folded(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: folded(x)[0]


def torch_compiled(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Run torch.compile with freezing, channels last: BatchNorm folded, weights prepacked, activations fused."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled: Callable[[Tensor], tuple[Tensor, ...]] = torch.compile(channels_last)
    x = x.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def run() -> Tensor:
        return compiled(x)[0]

    return run


def onnx_runtime(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Run ONNX Runtime's CPU provider with all optimisations."""
    import onnxruntime

    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def openvino(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Run OpenVINO in float32, tuned for latency."""
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(
        ov.convert_model(model, example_input=x, input=[list(x.shape)]),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request, feed = compiled.create_infer_request(), x.numpy()
    return lambda: torch.from_numpy(np.asarray(request.infer([feed])[0]))


PEERS: dict[str, tuple[str, Peer]] = {
    "torch eager": ("torch", torch_eager),
    "torch eager, BatchNorm folded, channels last": ("torch", torch_folded),
    "torch.compile, freezing, channels last": ("torch", torch_compiled),
    "ONNX Runtime": ("onnxruntime", onnx_runtime),
    "OpenVINO": ("openvino", openvino),
}


def build_peers(model: nn.Module, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Build every peer that is installed; the others are named on stderr, with how to get them."""
    peers = {}
    for name, (package, build) in PEERS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name}: not installed (pip install prunekit[peers])", file=sys.stderr)
            continue
        peers[f"{name} {metadata.version(package)}"] = build(model, x)
    return peers


def _folded(model: nn.Module) -> nn.Module:
    folded = copy.deepcopy(model)
    fold_batch_norms(folded, find_fusible(folded))
    return folded
