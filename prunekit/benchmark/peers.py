"""Dense ways to run the same model: what prunekit is compared with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from prunekit.benchmark.engines.calibration import NUM_INPUTS
from prunekit.benchmark.engines.calls import Call
from prunekit.benchmark.engines.onnx_runtime import onnx_runtime, onnx_runtime_int8
from prunekit.benchmark.engines.open_vino import openvino, openvino_bfloat16, openvino_int8
from prunekit.benchmark.engines.precisions import FLOAT32, Precision
from prunekit.benchmark.engines.pytorch import torch_compiled, torch_compiled_bfloat16, torch_eager, torch_folded


@dataclass(frozen=True)
class Peer:
    """One dense way.

    Attributes:
        name: For people.
        modules: What must be importable for it.
        build: Binds it to a model in eval mode and an input [N, C, H, W]; gradients are off. It raises
            `UnavailableError` where it could not do here what its name says.
        precision: What it computes in.
        notice: What to say before it is built, where that takes long.
    """

    name: str
    modules: tuple[str, ...]
    build: Callable[[nn.Module, Tensor], Call]
    precision: Precision = FLOAT32
    notice: str | None = None

    @property
    def missing(self) -> str | None:
        """Why it cannot run here, and how to get it; None where it can."""
        absent = [module for module in self.modules if importlib.util.find_spec(module) is None]
        return f"{' and '.join(absent)} not installed (pip install 'prunekit[peers]')" if absent else None


_ONNX = ("onnx", "onnxscript", "onnxruntime")
_QUANTIZING = f"quantizing, with ranges from {NUM_INPUTS} inputs; large networks can take minutes"

EAGER = "eager"
#: By the name that the command line knows.
PEERS: dict[str, Peer] = {
    EAGER: Peer("torch eager", (), torch_eager),
    "folded": Peer("torch eager, folded", (), torch_folded),
    "compile": Peer("torch.compile", (), torch_compiled),
    "onnxruntime": Peer("ONNX Runtime", _ONNX, onnx_runtime),
    "openvino": Peer("OpenVINO", ("openvino",), openvino),
    "compile-bf16": Peer("torch.compile, bfloat16", (), torch_compiled_bfloat16, "bfloat16"),
    "openvino-bf16": Peer("OpenVINO, bfloat16", ("openvino",), openvino_bfloat16, "bfloat16"),
    "onnxruntime-int8": Peer("ONNX Runtime, int8", _ONNX, onnx_runtime_int8, "int8", _QUANTIZING),
    "openvino-int8": Peer("OpenVINO, int8", ("openvino", "nncf"), openvino_int8, "int8", _QUANTIZING),
}
#: Those that take part without being asked for: lower precisions cost accuracy, and quantizing takes long.
FLOAT32_PEERS = tuple(key for key, peer in PEERS.items() if peer.precision == FLOAT32)
