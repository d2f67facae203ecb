"""What only a GPU can tell: skipped without one. `make gpu` runs this file and then measures."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from condensed_problems import condensed_problems
from conv_cases import random_cases
from emulated_kernels import RecordProblemCase
from oracles import TOLERANCE, masked_conv2d_oracle, relative_difference
from record_problems import record_problems
from torch import Tensor

from prunekit.ops.fragment_filter import DTYPES
from prunekit.ops.native import cuda_status

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
needs_kernels = pytest.mark.skipif(not cuda_status().available, reason=f"no CUDA kernels: {cuda_status().reason}")


def _on(case: RecordProblemCase, device: str) -> RecordProblemCase:
    def move(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(device)

    conv = case.conv
    conv = replace(conv, x=conv.x.to(device), bias=move(conv.bias), residual=move(conv.residual))
    starts, records, rows = (t.to(device) for t in (case.packed.starts, case.packed.records, case.packed.rows))
    return replace(case, conv=conv, packed=replace(case.packed, starts=starts, records=records, rows=rows))


def _run(case: RecordProblemCase) -> Tensor:
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
def test_the_condensed_kernel_agrees_with_the_oracle_and_with_itself() -> None:
    dtypes = DTYPES if torch.cuda.get_device_capability()[0] >= 8 else DTYPES[:1]
    for case, expected in condensed_problems(300, seed=45, dtypes=dtypes):
        conv = case.conv
        bias = None if conv.bias is None else conv.bias.cuda()
        residual = None if conv.residual is None else conv.residual.cuda()
        here = replace(conv, x=conv.x.cuda(), bias=bias, residual=residual)
        arguments = replace(case, conv=here, packed=case.packed.to("cuda")).arguments()
        y = torch.ops.prunekit.condensed_conv2d(*arguments)
        assert relative_difference(expected, y.cpu()) <= TOLERANCE[y.dtype]
        assert torch.equal(y, torch.ops.prunekit.condensed_conv2d(*arguments)), "two runs differ"


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
