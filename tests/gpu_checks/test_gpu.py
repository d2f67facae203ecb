"""What only a GPU can tell: skipped without one. `make gpu` runs this file and then measures."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prunekit
from prunekit.engine.gpu_program import GpuModel, GpuProgram, choose_layers
from prunekit.nn import AccelerationReport
from prunekit.nn.accelerate_gpu import build_graph
from prunekit.ops.cuda import dispatch
from prunekit.ops.cuda.cache import KernelCache
from prunekit.ops.cuda.condensed.filter import DTYPES
from prunekit.ops.native import cuda_status
from tests.support.bitmap_problems import bitmap_problems
from tests.support.condensed_problems import condensed_problems
from tests.support.conv_cases import ConvCase, random_cases
from tests.support.emulated_kernels import FilterCase
from tests.support.oracles import TOLERANCE, masked_conv2d_oracle, relative_difference
from tests.support.record_problems import record_problems
from tests.support.residual_nets import residual_net
from tests.support.semi_structured_problems import semi_structured_problems
from tests.support.sparse_choices import choose_sparse

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]
needs_kernels = pytest.mark.skipif(not cuda_status().available, reason=f"no CUDA kernels: {cuda_status().reason}")


def _on(case: FilterCase, device: str) -> FilterCase:
    def move(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(device)

    conv = case.conv
    conv = replace(conv, x=conv.x.to(device), bias=move(conv.bias), residual=move(conv.residual))
    return replace(case, conv=conv, packed=case.packed.to(device))


def _run(case: FilterCase) -> Tensor:
    y: Tensor = torch.ops.prunekit.record_conv2d(*case.arguments())
    return y


@needs_kernels
def test_the_record_kernel_agrees_with_the_oracle_and_with_itself() -> None:
    for case, expected in record_problems(300, seed=41):
        here = _on(case, "cuda")
        y = _run(here)
        assert relative_difference(expected, y.cpu()) <= TOLERANCE[torch.float32]
        assert torch.equal(y, _run(here)), "two runs differ"


@needs_kernels
@pytest.mark.parametrize("problems", [condensed_problems, bitmap_problems, semi_structured_problems])
def test_a_tensor_core_kernel_agrees_with_the_oracle_and_with_itself(problems: Callable[..., Any]) -> None:
    is_new = torch.cuda.get_device_capability()[0] >= 8
    if problems is semi_structured_problems and not is_new:
        pytest.skip("sparse tensor cores need architecture 8.0")
    for case, expected in problems(300, seed=45, dtypes=DTYPES if is_new else DTYPES[:1]):
        conv = case.conv
        bias = None if conv.bias is None else conv.bias.cuda()
        residual = None if conv.residual is None else conv.residual.cuda()
        here = replace(conv, x=conv.x.cuda(), bias=bias, residual=residual)
        arguments = replace(case, conv=here, packed=case.packed.to("cuda")).arguments()
        op = getattr(torch.ops.prunekit, case.source)
        y = op(*arguments)
        assert relative_difference(expected, y.cpu()) <= TOLERANCE[y.dtype]
        assert torch.equal(y, op(*arguments)), "two runs differ"


@needs_kernels
def test_graphs_streams_and_devices() -> None:
    case, expected = next(record_problems(1, seed=42))
    here = _on(case, "cuda")
    y = _run(here)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        on_stream = _run(here)
    stream.synchronize()
    assert torch.equal(y, on_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _run(here)
    captured.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, captured)
    for index in range(1, torch.cuda.device_count()):
        elsewhere = _run(_on(case, f"cuda:{index}")).cpu()
        assert relative_difference(expected, elsewhere) <= TOLERANCE[torch.float32]


@needs_kernels
def test_refusals_are_sentences() -> None:
    case = _on(next(record_problems(1, seed=43))[0], "cuda")
    with pytest.raises(RuntimeError, match="none that the kernel knows"):
        _run(replace(case, launch=[1, 1, 1, 1, 1]))
    with pytest.raises(RuntimeError, match="record_conv2d expects"):
        _run(replace(case, conv=replace(case.conv, x=case.conv.x.double())))


def _conv(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, case: ConvCase) -> Tensor:
    return prunekit.masked_conv2d(x, weight, mask, bias, *case.geometry)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masked_conv2d_and_its_gradients_agree_with_float64(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call and its gradients come from the record kernel in float32, from any other in halves."""
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("bfloat16 needs architecture 8.0")
    choose_sparse(monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for case in random_cases(60, seed=45, max_size=24):
        typed, mask = case.to(dtype), case.mask.cuda()
        leaves = [t.cuda().requires_grad_() for t in (typed.x, typed.weight, typed.bias) if t is not None]
        bias = leaves[2] if len(leaves) == 3 else None
        exact = [t.detach().double().cpu().requires_grad_() for t in leaves]
        kept = torch.where(case.mask, exact[1], 0)
        expected = torch.conv2d(exact[0], kept, exact[2] if len(exact) == 3 else None, *case.geometry)
        grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        references = torch.autograd.grad(expected, exact, grad.double())
        for _ in range(2):
            y = _conv(leaves[0], leaves[1], mask, bias, case)
            grads = torch.autograd.grad(y, leaves, grad.cuda())
        assert relative_difference(expected, y.cpu()) <= TOLERANCE[dtype]
        for reference, got in zip(references, grads, strict=True):
            assert relative_difference(reference, got.cpu()) <= TOLERANCE[dtype], case.geometry
        again = torch.autograd.grad(_conv(leaves[0], leaves[1], mask, bias, case), leaves[0], grad.cuda())
        assert torch.equal(again[0], grads[0]), "two runs differ"


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_measuring_chooses_and_a_packed_convolution_can_be_captured(dtype: torch.dtype) -> None:
    x = torch.randn(1, 128, 52, 52, device="cuda").to(dtype)
    weight = torch.randn(256, 128, 3, 3, device="cuda").to(dtype)
    mask = torch.rand(weight.shape, device="cuda") < 0.02
    cache = KernelCache(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "kernel_cache", lambda: cache)
        choices = dispatch.tune_masked_conv2d(x, weight, mask, (1, 1), (1, 1))
        assert set(choices) == {"forward", "input_grad"}
        assert all(choice.is_measured for choice in choices.values())
        y = prunekit.masked_conv2d(x, weight, mask, None, 1, 1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = prunekit.masked_conv2d(x, weight, mask, None, 1, 1)
        replayed.zero_()
        graph.replay()
        torch.cuda.synchronize()
    assert relative_difference(y.cpu(), replayed.cpu()) <= TOLERANCE[dtype]


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_accelerated_models_agree_and_replay(
    memory_format: torch.memory_format, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    net = residual_net(64, 0.05).cuda().to(dtype)
    x = torch.randn(2, 3, 64, 48, device="cuda").to(dtype).contiguous(memory_format=memory_format)
    fast = prunekit.accelerate(net, x, tuning_cache=None)
    report = fast.report
    assert isinstance(report, AccelerationReport)
    assert report.after_ms <= report.before_ms
    assert report.engine == "cuda graph", report.notes
    kept = fast(x)
    for other in (x, torch.randn_like(x), torch.randn(1, 3, 33, 40, device="cuda").to(dtype)):
        for a, b in zip(net(other), fast(other), strict=True):
            assert relative_difference(a.cpu(), b.cpu()) <= 10 * TOLERANCE[dtype]
    assert isinstance(fast, GpuModel)
    assert fast.note is None
    assert all(torch.equal(a, b) for a, b in zip(kept, fast(x), strict=True)), "a replay wrote over an earlier result"


@needs_kernels
def test_a_saved_model_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = residual_net(64, 0.05).cuda().half(), torch.randn(1, 3, 64, 48, device="cuda").half()
    device = dispatch.device_of(x)
    assert device is not None
    with monkeypatch.context() as patch:
        choose_sparse(patch)
        graph, _ = build_graph(net, [x])
        kernels = choose_layers(graph, [x], device, KernelCache(None), 0.0, lambda done, total: None)
    model = GpuModel(GpuProgram(graph, kernels, device.ops, device.gpu), [x])
    prunekit.save(model, tmp_path / "model.safetensors")
    loaded = prunekit.load(tmp_path / "model.safetensors")
    assert isinstance(loaded, GpuModel)
    assert {name: k.choice.launch for name, k in loaded.program.kernels.items()} == {
        name: k.choice.launch for name, k in kernels.items()
    }
    for a, b in zip(model(x), loaded(x), strict=True):
        assert relative_difference(a.cpu(), b.cpu()) <= TOLERANCE[torch.float16]


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32")],
)
def test_the_triton_kernel_agrees_with_the_oracle(dtype: torch.dtype, precision: str) -> None:
    kernels = pytest.importorskip("prunekit_kernels")
    draw = random.Random(44)
    tolerance = 2e-3 if precision == "tf32" else TOLERANCE[dtype]
    for case in random_cases(12, seed=44):
        typed = case.to(dtype)
        if precision == "tf32" and torch.cuda.get_device_capability()[0] < 8:
            pytest.skip("tf32 needs architecture 8.0")
        x = typed.x.to(memory_format=torch.channels_last) if draw.random() < 0.3 else typed.x
        expected = masked_conv2d_oracle(typed.x, typed.weight, case.mask, typed.bias, *case.geometry)
        filter = kernels.condense(typed.weight, case.mask, case.groups).to("cuda")
        bias = None if typed.bias is None else typed.bias.cuda()
        geometry = case.stride, case.padding, case.dilation
        run: Callable[..., Tensor] = kernels.condensed_conv2d
        y = run(x.cuda(), filter, bias, None, *geometry, precision=precision)
        assert relative_difference(expected, y.cpu()) <= tolerance
