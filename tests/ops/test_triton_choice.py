"""Triton's kernels in the choice: alone where the CUDA extension was not built, and among others where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import prunekit
from prunekit.ops.cuda import sources
from prunekit.ops.cuda.choice import candidates, choose_kernel
from prunekit.ops.cuda.devices import GPUS
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.registry import kernels_for
from prunekit.ops.cuda.triton.cost import CUTS, TritonLaunch, TritonProblem
from prunekit.ops.cuda.triton.filter import condensed_pattern
from prunekit.ops.masked_conv2d import masked_conv2d_reference
from prunekit.ops.native import CudaStatus
from tests.support.emulated_dispatch import EmulatedGpu, dispatched
from tests.support.oracles import TOLERANCE, relative_difference

TRITON, BOTH = frozenset({"triton"}), frozenset({"cuda", "triton"})
LAYER = ConvProblem(256, 128, (3, 3), 1, 0.01, 16, (52, 52), padding=(1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_pattern_filled_with_weights_holds_them(dtype: torch.dtype, groups: int) -> None:
    weight = torch.randn(36, 5, 3, 2).to(dtype)
    weight[0] = -0.0  # kept all the same
    mask = torch.rand(weight.shape) < 0.3
    pattern = condensed_pattern(mask, groups)
    for here in (weight, 2 * weight):
        filled = pattern.fill(here)
        assert filled.values.dtype == dtype
        unpacked, kept = type(filled).read(*filled.arguments()).unpack()
        assert torch.equal(kept, mask)
        assert torch.equal(unpacked, torch.where(mask, here, 0))


def test_triton_runs_alone_where_the_extension_was_not_built() -> None:
    for gpu in GPUS.values():
        here = replace(gpu, sources=TRITON)
        assert [kernel.name for kernel in kernels_for(LAYER, torch.float32, here)] == ["triton_float32"]
        halves = ["triton"] if gpu.capability >= 80 else []
        assert [kernel.name for kernel in kernels_for(LAYER, torch.float16, here)] == halves
        assert not any(kernel.source == "triton" for kernel in kernels_for(LAYER, torch.float32, gpu))
        choice = choose_kernel(LAYER, torch.float32, here, allow_tf32=False)
        assert (choice.kernel, choice.is_measured) == ("triton_float32", False)
        assert choose_kernel(replace(LAYER, density=0.5), torch.float32, here, allow_tf32=False).kernel == "dense"
    assert (
        choose_kernel(LAYER, torch.float16, replace(GPUS["rtx-4090"], sources=TRITON), allow_tf32=True).kernel
        == "triton"
    )


def test_triton_competes_where_the_extension_was_built() -> None:
    gpu = replace(GPUS["rtx-4090"], sources=BOTH)
    found = candidates(LAYER, torch.float16, gpu, 1)
    assert {one.kernel.name for one in found} == {"condensed", "bitmap", "semi_structured", "triton"}
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)
    (triton,) = (one for one in found if one.kernel.name == "triton")
    assert triton.launch.numbers() in [list(cut) for cut in CUTS]
    assert triton.kernel.is_possible(LAYER, triton.kernel.launch_of(triton.launch.numbers()), gpu)
    assert not triton.kernel.is_possible(LAYER, TritonLaunch(48, 16, 2, 3), gpu)


def test_masks_whose_filters_share_columns_are_modeled_faster() -> None:
    """A row group of a mask in blocks of 16 filters has as many columns as the density says."""
    blocks = TritonProblem.of(replace(LAYER, density=0.1, shared_columns=0.1))
    assert blocks.columns == pytest.approx(0.1 * 128 * 9)
    assert TritonProblem.of(replace(LAYER, density=0.1)).columns == pytest.approx(128 * 9 * (1 - 0.9**16))


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 1, 1), (2, 1, 2)])
def test_masked_conv2d_and_its_gradients_run_on_triton(
    stride: int, padding: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the op's reference here; tests/gpu_checks/interpreted_triton_kernels.py runs the kernel."""
    gpu = EmulatedGpu(replace(GPUS["rtx-2070-super"], sources=TRITON), is_emulated=False)
    x, weight = torch.randn(8, 128, 56, 56), torch.randn(128, 128 // groups, 3, 3)
    mask = torch.rand(weight.shape) < 0.002

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        y = prunekit.masked_conv2d(x, weight, mask, None, stride, padding, 1, groups)
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        return y.detach(), grad

    with dispatched(gpu, monkeypatch):
        run(x)  # a mask is packed when it comes the second time
        y, grad = run(x)
    assert {name for name, *_ in gpu.launches} == {"triton_float32"}
    assert len(gpu.launches) == 2
    wide, kept = x.double().requires_grad_(), torch.where(mask, weight, 0).double()
    pairs = (stride, stride), (padding, padding), (1, 1)
    expected = masked_conv2d_reference(wide, kept, mask, None, *map(list, pairs), groups)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), wide)
    assert relative_difference(expected.detach(), y) <= TOLERANCE[torch.float32]
    assert relative_difference(expected_grad, grad) <= TOLERANCE[torch.float32]


def test_what_is_there_and_why_nothing_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "cuda_status", lambda: CudaStatus(False, (), None, "they were not built"))
    monkeypatch.setattr(sources, "has_package", lambda name: True)
    monkeypatch.setattr(sources, "_has_python_headers", lambda: True)
    monkeypatch.setenv("CC", "gcc")
    assert (sources.kernel_sources(), sources.missing_kernels()) == (TRITON, None)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sources.kernel_sources() == frozenset()
    assert sources.missing_kernels() == (
        "they were not built, and Triton finds no C compiler (install gcc or clang, or set CC)"
    )
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.setattr(sources, "_has_python_headers", lambda: False)
    assert str(sources.missing_triton()).startswith("Triton finds no Python.h")
    for absent in ("triton", "prunekit_kernels"):
        monkeypatch.setattr(sources, "has_package", lambda name, absent=absent: name != absent)
        assert sources.missing_triton() == "Triton is not installed"
    monkeypatch.setattr(sources, "cuda_status", lambda: CudaStatus(True, ("75",), "13.0", None))
    assert (sources.kernel_sources(), sources.missing_kernels()) == (frozenset({"cuda"}), None)
