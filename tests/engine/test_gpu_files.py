"""Accelerated models of GPUs as files, on a processor: what is saved, what is packed anew, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import prunekit
from prunekit import documents
from prunekit.comparison import relative_rms
from prunekit.engine.artifact import GPU_FORMAT
from prunekit.engine.gpu_artifact import load_gpu_model
from prunekit.engine.gpu_program import GpuModel, GpuProgram, choose_layers, is_channels_last
from prunekit.errors import InputError
from prunekit.nn.accelerate_gpu import build_graph
from prunekit.ops.cuda.cache import KernelCache
from prunekit.ops.cuda.devices import GPUS
from prunekit.ops.native import CudaStatus
from tests.support.emulated_dispatch import EmulatedGpu
from tests.support.oracles import TOLERANCE
from tests.support.residual_nets import residual_net
from tests.support.sparse_choices import choose_sparse

CPU = torch.device("cpu")


def _model(x: Tensor, gpu: EmulatedGpu) -> GpuModel:
    """All convolutions sparse but the stem."""
    net = residual_net().to(x.dtype)
    net.stem.weight.copy_(torch.rand(net.stem.weight.shape) + 0.1)
    graph, _ = build_graph(net, [x])
    device = gpu.device(x)
    kernels = choose_layers(graph, [x], device, KernelCache(None), 0.0, lambda done, total: None)
    return GpuModel(GpuProgram(graph, kernels, gpu.ops, device.gpu), [x], captures=False)


def _load(path: Path, gpu: EmulatedGpu) -> GpuModel:
    return load_gpu_model(documents.read(path, "a model"), path, gpu.device(torch.empty(0)), CPU, KernelCache(None))


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    content = documents.read(path, "a model")
    return content.tensors, content.document


@pytest.mark.parametrize("kernel", ["record", "condensed", "bitmap", "semi_structured"])
def test_a_loaded_model_runs_the_same_cuts_and_gives_the_same_bits(kernel: str, tmp_path: Path) -> None:
    dtype = torch.float32 if kernel == "record" else torch.float16
    path, x = tmp_path / "below" / "model.safetensors", torch.randn(1, 3, 14, 18).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last if dtype == torch.float16 else torch.contiguous_format)
    gpu = EmulatedGpu(GPUS["rtx-4090"], is_emulated=False)
    with pytest.MonkeyPatch.context() as patch:
        choose_sparse(patch, only=kernel)
        model = _model(x, gpu)
    prunekit.save(model, path)
    expected = model(x)
    chosen = list(gpu.launches)
    assert [launch[0] for launch in chosen] == 3 * [kernel]
    loaded = _load(path, gpu)
    assert gpu.launches == chosen
    outputs = loaded(x)
    assert isinstance(outputs, tuple)
    assert isinstance(expected, tuple)
    assert gpu.launches == 2 * chosen, "the file's choices, where the model by itself would run dense"
    assert all(torch.equal(a, b) for a, b in zip(expected, outputs, strict=True))
    assert loaded.report is None
    stem = loaded.program.graph.constants[next(loaded.program.graph.convolutions()).attributes["weight"]]
    assert is_channels_last(stem) == (dtype == torch.float16)
    assert loaded(torch.randn(2, 3, 9, 11).to(dtype))[1].shape == (2, 12, 5, 6)
    # On another device the model chooses: dense, for so few channels.
    other = EmulatedGpu(GPUS["a100"], is_emulated=False)
    elsewhere = _load(path, other)(x)
    assert other.launches == []
    assert isinstance(elsewhere, tuple)
    for a, b in zip(expected, elsewhere, strict=True):
        assert relative_rms(a, b) <= 2 * TOLERANCE[dtype]
    again = tmp_path / "again.safetensors"
    prunekit.save(loaded, again)
    assert _contents(again)[1] == _contents(path)[1]


def test_zeros_take_a_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_sparse(monkeypatch)
    path, x = tmp_path / "model.safetensors", torch.randn(1, 3, 14, 18)
    gpu = EmulatedGpu(is_emulated=False)
    prunekit.save(_model(x, gpu), path)
    tensors, document = _contents(path)
    assert document["format"] == GPU_FORMAT
    assert document["gpu"] == [gpu.gpu.name, 75, 40]
    weights = {name: shape for name, shape in document["shapes"].items() if shape == [12, 12, 3, 3]}
    assert len(weights) == 2
    for name in weights:
        assert tensors[f"bits/{name}"].numel() == 162
        assert tensors[f"values/{name}"].numel() < 500
        assert f"constant/{name}" not in tensors


@pytest.mark.parametrize("damage", [
    lambda d: next(c for c in d["choices"].values() if c[1]).__setitem__(0, "another"),
    lambda d: next(c for c in d["choices"].values() if c[1]).__setitem__(0, "dense"),
    lambda d: next(c for c in d["choices"].values() if c[1])[1].pop(),
    lambda d: next(c for c in d["choices"].values() if c[1])[1].__setitem__(0, -1),
    lambda d: d["nodes"][5]["attributes"].update(target="aten.from_file.default"),
    lambda d: d["nodes"][0].update(inputs=["nobody"]),
    lambda d: d["example"][0].__setitem__(1, "Tensor"),
    lambda d: d.update(output_spec="{"),
    lambda d: d.pop("choices"),
])  # fmt: skip
def test_damaged_files_are_refused(
    damage: Callable[[dict[str, Any]], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_sparse(monkeypatch)
    path, gpu = tmp_path / "model.safetensors", EmulatedGpu(is_emulated=False)
    prunekit.save(_model(torch.randn(1, 3, 14, 18), gpu), path)
    tensors, document = _contents(path)
    _load(path, gpu)
    damage(document)
    documents.write(path, tensors, document)
    with pytest.raises(InputError, match=r"is damaged|cannot run: Expected an operator"):
        _load(path, gpu)


def test_without_a_gpu_loading_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    prunekit.save(_model(torch.randn(1, 3, 14, 18), EmulatedGpu(is_emulated=False)), path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="accelerated for an NVIDIA GPU, but torch finds none here"):
        prunekit.load(path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    absent = CudaStatus(False, (), None, "they were not built")
    monkeypatch.setattr("prunekit.ops.cuda.sources.cuda_status", lambda: absent)
    monkeypatch.setattr("prunekit.ops.cuda.sources.missing_triton", lambda: "Triton is not installed")
    with pytest.raises(InputError, match="needs prunekit's CUDA kernels or Triton, but they were not built"):
        prunekit.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="Expected 'prunekit accelerated GPU model' version 2"):
        _load(path, EmulatedGpu())
