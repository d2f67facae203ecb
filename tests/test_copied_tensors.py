"""What is read from a safetensors file: aligned as torch aligns its own memory, and independent of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import prunekit
from prunekit import documents
from prunekit.compaction import compact
from prunekit.compaction import load as load_compacted
from prunekit.compaction import save as save_compacted
from prunekit.documents import read_described
from prunekit.ops.native import native_status
from prunekit.prune.tensor_files import load_tensors, save_tensors

# Of torch's allocator on a CPU.
ALIGNMENT = 64
# Of odd lengths, so that what follows them in a file is aligned to no vector.
ODD = {f"tensor-{length}": torch.randn(length) for length in (1, 3, 7, 12, 60)}

native = pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}")


def _net() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
    )
    return net.eval().requires_grad_(False)


def _is_aligned(tensors: dict[str, torch.Tensor]) -> bool:
    return len(tensors) > 1 and all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors.values())


def _read_raw(path: Path) -> dict[str, torch.Tensor]:
    return documents.read(path, "odd tensors").tensors


def _read_described(path: Path) -> dict[str, torch.Tensor]:
    return read_described(path, "odd", "odd tensors")[1]


def test_what_safetensors_gives_is_not_aligned(tmp_path: Path) -> None:
    save_file(ODD, tmp_path / "odd.safetensors")
    with safe_open(tmp_path / "odd.safetensors", framework="pt") as file:
        assert not _is_aligned({name: file.get_tensor(name) for name in ODD}), "then no copy would be needed"


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (lambda path: save_file(ODD, path), _read_raw),
        (lambda path: documents.write(path, ODD), lambda path: documents.read(path.read_bytes(), "odd").tensors),
        (lambda path: save_tensors(path, ODD), lambda path: load_tensors(path, "odd tensors")),
        (lambda path: documents.write(path, ODD, {"format": "odd"}), _read_described),
    ],
    ids=["raw", "bytes", "scores and masks", "described"],
)
def test_tensors_are_aligned_and_outlive_the_file(
    write: Callable[[Path], object], read: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "odd.safetensors"
    write(path)
    tensors = read(path)
    assert _is_aligned(tensors)
    path.write_bytes(bytes(path.stat().st_size))  # into the same file, as cp does
    assert all(torch.equal(tensors[name], expected) for name, expected in ODD.items())


@native
@pytest.mark.usefixtures("one_thread")
def test_an_accelerated_model_outlives_its_file_and_keeps_its_bits(tmp_path: Path) -> None:
    path, x = tmp_path / "model.safetensors", torch.randn(1, 3, 9, 11)
    fast = prunekit.accelerate(_net(), x, tuning_seconds=0.1, tuning_cache=None)
    prunekit.save(fast, path)
    loaded: Any = prunekit.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(loaded(x), fast(x))
    assert _is_aligned(loaded.graph.constants)


@pytest.mark.usefixtures("one_thread")
def test_a_compacted_model_outlives_its_file_and_keeps_its_bits(tmp_path: Path) -> None:
    path, x, net = tmp_path / "model.safetensors", torch.randn(1, 3, 9, 11), _net()
    net.get_submodule("0").weight[2] = 0.0  # type: ignore[operator]
    result = compact(net, x, latency_runs=0)
    save_compacted(result, path)
    loaded = load_compacted(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(loaded(x), result.model(x))
    assert _is_aligned(dict(loaded.named_parameters()) | dict(loaded.named_buffers()))
