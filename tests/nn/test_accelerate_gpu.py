"""accelerate for GPUs, on a processor: graphs against torch, choices by given figures, kernels emulated, the report."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

import prunekit
from prunekit.comparison import relative_rms
from prunekit.engine.capture import CaptureError
from prunekit.engine.gpu_program import GpuModel, GpuProgram, _Captured, choose_layers
from prunekit.errors import InputError, WrongOutputError
from prunekit.nn import AccelerationReport, MaskedConv2d
from prunekit.nn.accelerate_gpu import accelerate_on_gpu, build_graph, check_gpu_arguments
from prunekit.ops.cuda.cache import KernelCache
from prunekit.ops.cuda.devices import GPUS
from prunekit.ops.native import CudaStatus
from tests.support.emulated_dispatch import EmulatedGpu
from tests.support.emulated_kernels import COMPILER
from tests.support.engine_nets import random_net
from tests.support.oracles import TOLERANCE
from tests.support.residual_nets import residual_net
from tests.support.sparse_choices import HALF_KERNELS, choose_sparse

needs_compiler = pytest.mark.skipif(not COMPILER, reason="no g++ to compile the emulated kernels with")


def program_of(net: nn.Module, inputs: Sequence[Tensor], gpu: EmulatedGpu) -> GpuProgram:
    graph, _ = build_graph(net, inputs)
    kernels = choose_layers(graph, inputs, gpu.device(inputs[0]), KernelCache(None), 0.0, lambda done, total: None)
    return GpuProgram(graph, kernels, gpu.ops)


def accelerated(net: nn.Module, x: Tensor, gpu: EmulatedGpu, seconds: float = 0.0) -> nn.Module:
    return accelerate_on_gpu(net, [x], net(x), seconds, None, None, gpu.device(x))


@pytest.mark.parametrize("emulated", [pytest.param(True, marks=needs_compiler), False])
def test_random_networks_agree_with_torch(emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operator, each third one with channels-last inputs; emulated kernels, and torch's own on other nets."""
    gpu = EmulatedGpu(is_emulated=emulated)
    choose_sparse(monkeypatch)
    ran = 0
    for seed in range(100, 106) if emulated else range(200, 212):
        case = random_net(seed)
        inputs = case.inputs
        if seed % 3 == 0:
            inputs = tuple(x.contiguous(memory_format=torch.channels_last) for x in inputs)
        try:
            program = program_of(case.net, inputs, gpu)
        except CaptureError:
            continue
        ran += 1
        outputs = program.run(inputs)
        expected = list(tree_leaves(case.net(*(x.clone() for x in inputs))))
        for a, b in zip(expected, outputs, strict=True):
            assert a.shape == b.shape
            assert relative_rms(a, b) <= 10 * TOLERANCE[torch.float32], seed
    assert ran >= (5 if emulated else 10)
    assert gpu.launches


@needs_compiler
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_activation_and_residual_are_fused_where_the_epilogue_can(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_sparse(monkeypatch)
    gpu, net = EmulatedGpu(), residual_net()
    x = torch.randn(2, 3, 14, 18).contiguous(memory_format=memory_format)
    graph, folded = build_graph(net, [x])
    assert folded == 1
    assert [node.op for node in graph.nodes] == ["conv2d"] * 4 + ["global_mean", "torch", "torch"]
    epilogues = [(n.attributes["before"].kind, len(n.inputs), n.attributes["after"].kind) for n in graph.convolutions()]
    assert epilogues == [("relu", 1, "none"), ("silu", 1, "none"), ("leaky_relu", 2, "none"), ("none", 2, "relu")]
    fast = GpuModel(program_of(net, [x], gpu), [x], captures=False)
    outputs = fast(x)
    assert isinstance(outputs, tuple)
    for a, b in zip(net(x), outputs, strict=True):
        assert relative_rms(a, b) <= TOLERANCE[torch.float32]
    assert len(gpu.launches) == 4
    assert gpu.epilogues == ["leaky_relu", "none", "leaky_relu", "leaky_relu_last"]
    assert gpu.residuals == [False, False, True, True]
    assert outputs[1].is_contiguous(memory_format=memory_format)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_nets_run_on_tensor_cores_and_agree_with_float32(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_sparse(monkeypatch)
    monkeypatch.setattr("prunekit.nn.accelerate_gpu._WHOLE_MODEL_RUNS", 1)
    gpu, net = EmulatedGpu(GPUS["rtx-4090"]), residual_net().to(dtype)
    x = torch.randn(2, 3, 14, 18).to(dtype).contiguous(memory_format=torch.channels_last)
    graph, folded = build_graph(net, [x])
    assert folded == 1
    assert [node.op for node in graph.nodes] == ["conv2d"] * 4 + ["global_mean", "torch", "torch"]
    outputs = program_of(net, [x], gpu).run([x])
    assert {launch[0] for launch in gpu.launches} <= HALF_KERNELS
    exact = copy.deepcopy(net).float()(x.float())
    for a, b in zip(exact, outputs, strict=True):
        assert b.dtype == dtype
        assert relative_rms(a, b) <= 2 * TOLERANCE[dtype]
    report = accelerated(net, x, EmulatedGpu(GPUS["rtx-4090"], is_emulated=False)).report
    assert isinstance(report, AccelerationReport)
    assert all(row.implementation.startswith(tuple(HALF_KERNELS)) or row.name == "stem" for row in report.rows)
    assert report.peak_gflops == GPUS["rtx-4090"].tensor_peak_gflops


def test_random_nets_in_half_precision_agree_with_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, ran = EmulatedGpu(GPUS["a100"], is_emulated=False), 0
    choose_sparse(monkeypatch)
    for seed in range(300, 308):
        case = random_net(seed)
        exact = list(tree_leaves(case.net(*(x.clone() for x in case.inputs))))
        inputs = tuple(x.bfloat16() for x in case.inputs)
        net = case.net.bfloat16()
        own = list(tree_leaves(net(*(x.clone() for x in inputs))))
        try:
            outputs = program_of(net, inputs, gpu).run(inputs)
        except CaptureError:
            continue
        ran += 1
        for a, b, c in zip(exact, own, outputs, strict=True):
            assert (b.shape, b.dtype) == (c.shape, c.dtype)
            assert relative_rms(a, c) <= 2 * relative_rms(a, b) + TOLERANCE[torch.bfloat16], seed
    assert ran >= 5
    assert {launch[0] for launch in gpu.launches} == HALF_KERNELS


def test_a_wrong_half_precision_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_sparse(monkeypatch)

    class Broken(EmulatedGpu):
        def conv2d(self, kernel: str, *arguments: object) -> Tensor:
            return super().conv2d(kernel, *arguments) * 1.02

    with pytest.raises(WrongOutputError, match="differs from the original"):
        accelerated(residual_net().half(), torch.randn(1, 3, 14, 18).half(), Broken(is_emulated=False))


class PretendedGraph:
    """Replays as a CUDA graph does: from its inputs' memory into its outputs'."""

    def __init__(self, program: GpuProgram, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self.program, self.inputs, self.outputs = program, inputs, outputs

    def replay(self) -> None:
        for static, y in zip(self.outputs, self.program.run(self.inputs), strict=True):
            static.copy_(y)


def test_sizes_are_captured_once_and_results_outlive_the_next_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_sparse(monkeypatch)
    net, x = residual_net(), torch.randn(1, 3, 14, 18)
    captured: list[torch.Size] = []

    def capture(model: GpuModel, inputs: Sequence[Tensor]) -> _Captured:
        captured.append(inputs[0].shape)
        static = [x.clone() for x in inputs]
        outputs = model.program.run(static)
        return _Captured(PretendedGraph(model.program, static, outputs), static, outputs)  # type: ignore[arg-type]

    monkeypatch.setattr(GpuModel, "_capture", capture)
    fast = GpuModel(program_of(net, [x], EmulatedGpu(is_emulated=False)), [x])
    with torch.inference_mode():  # where time_in_turn calls it first
        first = fast(x.clone())
    others = [torch.randn(1, 3, 14, 18 + more) for more in (0, 0, 1, 0, 1)]
    results = [fast(other) for other in others]
    assert [shape[3] for shape in captured] == [18, 19]
    for image, result in zip([x, *others], [first, *results], strict=True):
        assert isinstance(result, tuple)
        for a, b in zip(net(image), result, strict=True):
            assert relative_rms(a, b) <= TOLERANCE[torch.float32]
    for more in range(12):
        fast(torch.randn(1, 3, 14, 20 + more))
    assert len(fast._captured) == 8
    assert fast.note is None


def test_a_failing_capture_is_noted_and_the_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(model: GpuModel, inputs: Sequence[Tensor]) -> _Captured:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(GpuModel, "_capture", capture)
    net, x = residual_net(), torch.randn(1, 3, 14, 18)
    fast = GpuModel(program_of(net, [x], EmulatedGpu(is_emulated=False)), [x])
    for _ in range(2):
        outputs = fast(x)
        assert isinstance(outputs, tuple)
        assert relative_rms(net(x)[1], outputs[1]) <= TOLERANCE[torch.float32]
    assert fast.note == "no CUDA graph: operation not permitted when stream is capturing"


def test_other_sizes_run_and_wrong_inputs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_sparse(monkeypatch)
    net, x = residual_net(), torch.randn(1, 3, 14, 18)
    fast = GpuModel(program_of(net, [x], EmulatedGpu(is_emulated=False)), [x], captures=False)
    other = torch.randn(3, 3, 21, 9)
    outputs = fast(other)
    assert isinstance(outputs, tuple)
    assert relative_rms(net(other)[1], outputs[1]) <= TOLERANCE[torch.float32]
    for inputs, words in (
        ((), r"Expected the arguments \(x\), got 0 positional ones"),
        ((x.double(),), "got a torch.float64 one"),
        ((torch.randn(1, 4, 14, 18),), "as the shape of x"),
        (("image",), "got str"),
    ):
        with pytest.raises(InputError, match=words):
            fast(*inputs)
    with pytest.raises(InputError, match="for inference"):
        fast.train()


@pytest.mark.parametrize("name", ["rtx-2070-super", "a100", "h100"])
def test_the_report_names_kernel_bytes_floor_and_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 channels of the same net: at 95 % zeros the 3×3 layers go sparse, and the dense stem stays."""
    monkeypatch.setattr("prunekit.nn.accelerate_gpu._WHOLE_MODEL_RUNS", 1)
    gpu = EmulatedGpu(GPUS[name], is_emulated=False)
    net, x = residual_net(256, 0.03), torch.randn(1, 3, 52, 52)
    net.stem.weight.copy_(torch.randn(net.stem.weight.shape) / 5)
    fast = accelerated(net, x, gpu)
    report = fast.report
    assert isinstance(report, AccelerationReport)
    assert report.gpu == GPUS[name].name
    rows = {row.name: row for row in report.rows}
    assert set(rows) == {"stem", "a", "b", "c"}
    assert rows["stem"].reason == "it has no zeros"
    for row in report.rows:
        assert row.num_bytes is not None
        assert row.floor_ms is not None
        assert row.dense_ms is not None
        assert row.sparse_ms is not None
        is_sparse = row.implementation.startswith("record")
        assert row.name == "stem" or is_sparse == (row.sparse_ms < row.dense_ms)
        assert row.floor_ms <= (row.sparse_ms if is_sparse else row.dense_ms) * 1.001
    if name == "rtx-2070-super":
        assert rows["c"].implementation.startswith("record")
        assert rows["c"].num_bytes is not None
        assert rows["c"].num_bytes < 4 * 256 * 256 * 9 + 3 * 4 * 256 * 26 * 26
    text = str(report)
    assert "it has no zeros" in text
    assert "floor ms" in text
    assert "modeled" in text
    assert GPUS[name].name in text
    assert json.loads(json.dumps(report.to_json()))["gpu"] == GPUS[name].name


def test_masked_convolutions_are_convolutions_with_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_sparse(monkeypatch)
    net, x = residual_net(), torch.randn(1, 3, 14, 18)
    expected = net(x)
    for name in ("a", "b", "c"):
        setattr(net, name, MaskedConv2d.from_dense(getattr(net, name)).eval().requires_grad_(False))
    fast = accelerated(net, x, EmulatedGpu(is_emulated=False))
    assert isinstance(fast.report, AccelerationReport)
    assert [row.name for row in fast.report.rows] == ["stem", "a", "b", "c"]
    assert relative_rms(expected[1], fast(x)[1]) <= TOLERANCE[torch.float32]


def test_measuring_decides_and_is_kept(tmp_path: Path) -> None:
    gpu, net, x = EmulatedGpu(is_emulated=False), residual_net(), torch.randn(1, 3, 14, 18)
    path = tmp_path / "kernels.json"
    calls: list[tuple[int, int]] = []
    for _ in range(2):
        fast = accelerate_on_gpu(net, [x], net(x), 60.0, path, lambda *done: calls.append(done), gpu.device(x))
        assert isinstance(fast.report, AccelerationReport)
        assert all(row.reason.endswith("measured") for row in fast.report.rows)
        assert all(row.implementation == "dense" for row in fast.report.rows)  # a tie
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)] * 2
    measured = len(gpu.launches)
    assert len(KernelCache(path)._values) == 4
    accelerate_on_gpu(net, [x], net(x), 60.0, path, None, gpu.device(x))
    assert len(gpu.launches) == measured, "what is in the file is not measured again"


def test_a_wrong_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_sparse(monkeypatch)

    class Broken(EmulatedGpu):
        def conv2d(self, kernel: str, *arguments: object) -> Tensor:
            return super().conv2d(kernel, *arguments) * 1.001

    with pytest.raises(WrongOutputError, match="differs from the original"):
        accelerated(residual_net(), torch.randn(1, 3, 14, 18), Broken(is_emulated=False))


def test_a_model_that_cannot_be_captured_is_kept_with_a_note() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    net, x = Branching(), torch.randn(1, 3, 14, 18)
    fast = accelerated(net, x, EmulatedGpu(is_emulated=False))
    assert fast is net
    assert isinstance(fast.report, AccelerationReport)
    assert "not run as a whole graph" in fast.report.notes[0]


def test_a_model_on_a_gpu_without_the_kernels_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = CudaStatus(False, (), None, "they were not built: reinstall prunekit")
    monkeypatch.setattr("prunekit.ops.cuda.sources.cuda_status", lambda: absent)
    monkeypatch.setattr("prunekit.ops.cuda.sources.missing_triton", lambda: "Triton is not installed")
    with FakeTensorMode():
        net, x = nn.Identity(), torch.empty(1, 3, 8, 8, device="cuda")
        net.register_buffer("scale", torch.empty(3, device="cuda"))
        with pytest.raises(
            InputError, match="CUDA kernels or Triton, but they were not built: reinstall prunekit, and"
        ):
            prunekit.accelerate(net, x)
        with pytest.raises(InputError, match="are on cpu, cuda:0"):
            prunekit.accelerate(net, torch.empty(1, 3, 8, 8))
    monkeypatch.setattr("prunekit.ops.cuda.sources.missing_triton", lambda: None)
    for arguments in ({"whole_graph": False}, {"weight_dtype": torch.bfloat16}):
        named = {"whole_graph": True, "weight_dtype": torch.float32, **arguments}
        with pytest.raises(InputError, match="for models on the CPU; this one is on a GPU"):
            check_gpu_arguments(**named)  # type: ignore[arg-type]
