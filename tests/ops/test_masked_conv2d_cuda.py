"""The dispatch of masked_conv2d on GPUs, on a processor: choices by figures, kernels in the emulation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import prunekit
from prunekit.nn import MaskedConv2d
from prunekit.ops.cuda import dispatch as cuda
from prunekit.ops.cuda.bitmap.filter import bitmap_packer, pack_bitmaps
from prunekit.ops.cuda.condensed.filter import fragment_packer, pack_fragments
from prunekit.ops.cuda.devices import GPUS
from prunekit.ops.cuda.packed_filter import PackedFilter
from prunekit.ops.cuda.plan import input_grad_job
from prunekit.ops.cuda.record.cost import RecordProblem
from prunekit.ops.cuda.semi_structured.filter import pack_semi_structured, semi_structured_packer
from prunekit.ops.cuda.transposed_conv import TransposedConv
from prunekit.ops.masked_conv2d import is_finite
from tests.support.conv_cases import ConvCase, random_cases
from tests.support.emulated_dispatch import EmulatedGpu, dispatched
from tests.support.emulated_kernels import COMPILER
from tests.support.oracles import TOLERANCE, masked_conv2d_oracle, relative_difference
from tests.support.sparse_choices import HALF_KERNELS, choose_sparse

needs_compiler = pytest.mark.skipif(not COMPILER, reason="no g++ to compile the emulated kernels with")


@pytest.fixture
def always_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the dtype's sparse kernel win everywhere."""
    choose_sparse(monkeypatch)


def _grads(case: ConvCase, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Two calls, as the first packs nothing; of the second the output and the gradients."""
    leaves = [t.clone().requires_grad_() for t in (case.x, case.weight)]
    bias = None if case.bias is None else case.bias.clone().requires_grad_()
    wanted = leaves if bias is None else [*leaves, bias]
    for _ in range(2):
        y = prunekit.masked_conv2d(leaves[0], leaves[1], case.mask, bias, *case.geometry)
        grads = torch.autograd.grad(y, wanted, grad)
    return grads[0], grads[1], (None if bias is None else grads[2]), y


@needs_compiler
@pytest.mark.usefixtures("always_sparse")
@pytest.mark.parametrize(
    ("dtype", "seed"), [(torch.float32, 51), (torch.float16, 52), (torch.bfloat16, 53)], ids=["float", "half", "brain"]
)
def test_output_and_gradients_agree_with_float64(
    dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random odd shapes, strides of 1 to 3, padding, dilation, groups; channels-last gradients, too."""
    gpu, tolerance = EmulatedGpu(GPUS["rtx-4090"]), TOLERANCE[dtype]
    for number, drawn in enumerate(random_cases(20, seed, max_size=14)):
        case = drawn.to(dtype).to(torch.float64)
        kept = torch.where(case.mask, case.weight, 0).requires_grad_()
        x = case.x.clone().requires_grad_()
        bias = None if case.bias is None else case.bias.clone().requires_grad_()
        expected = torch.conv2d(x, kept, bias, *case.geometry)
        generator = torch.Generator().manual_seed(number)
        grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(dtype).double()
        wanted = [x, kept] if bias is None else [x, kept, bias]
        references = torch.autograd.grad(expected, wanted, grad)
        here = case.to(dtype)
        grad = grad.to(dtype).contiguous(memory_format=torch.channels_last if number % 3 else torch.contiguous_format)
        before = len(gpu.launches)
        with dispatched(gpu, monkeypatch):
            grad_x, grad_weight, grad_bias, y = _grads(here, grad)
        assert len(gpu.launches) - before == 2, "the second call's output and gradient are sparse"
        assert relative_difference(masked_conv2d_oracle(case.x, case.weight, case.mask, case.bias, *case.geometry), y) \
            <= tolerance  # fmt: skip
        assert relative_difference(references[0], grad_x) <= tolerance, case.geometry
        masked = torch.where(case.mask, references[1], 0)
        assert relative_difference(masked, grad_weight) <= tolerance
        assert not bool(grad_weight[~case.mask].any())
        if grad_bias is not None:
            assert relative_difference(references[2], grad_bias) <= tolerance
    assert {launch[0] for launch in gpu.launches} == ({"record"} if dtype == torch.float32 else HALF_KERNELS)


@pytest.mark.usefixtures("always_sparse")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_dropped_weight_passes_no_inf_and_no_nan(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = EmulatedGpu(is_emulated=bool(COMPILER))
    x, weight = torch.randn(1, 3, 6, 7).to(dtype), torch.randn(4, 3, 3, 3).to(dtype)
    mask = torch.rand(weight.shape) < 0.4
    mask[:, 1] = False
    x[0, 1, 2, 3], weight[~mask] = torch.inf, torch.nan
    leaf = x.clone().requires_grad_()
    grad = torch.randn(1, 4, 6, 7).to(dtype)
    grad[0, 2, 3, 3] = torch.inf
    mask[2] = False
    with dispatched(gpu, monkeypatch):
        for _ in range(2):
            y = prunekit.masked_conv2d(leaf, weight, mask, None, 1, 1)
            (grad_x,) = torch.autograd.grad(y, leaf, grad)
    assert len(gpu.launches) == 2
    assert bool(y.isfinite().all())
    assert bool(grad_x.isfinite().all())


def test_the_transposed_convolution_is_the_gradient_in_float64() -> None:
    for case in random_cases(100, seed=52, max_size=16):
        kept = torch.where(case.mask, case.weight, 0)
        transposed = TransposedConv.of(kept.shape[2:], *case.geometry)
        sources = transposed.sources(kept.shape)
        each = sources[sources >= 0].sort().values
        assert torch.equal(each, torch.arange(kept.numel())), "each weight stands in one place"
        filter = torch.where(sources >= 0, kept.flatten()[sources.clamp(min=0)], 0)
        x = case.x.clone().requires_grad_()
        y = torch.conv2d(x, kept, None, *case.geometry)
        grad = torch.randn_like(y)
        (expected,) = torch.autograd.grad(y, x, grad)

        def convolve(padding: tuple[int, int], grad: Tensor = grad, filter: Tensor = filter,
                     transposed: TransposedConv = transposed) -> Tensor:  # fmt: skip
            return torch.conv2d(grad, filter, None, 1, padding, transposed.dilation, transposed.groups)

        assert relative_difference(expected, transposed.run(convolve, x.shape, grad)) <= TOLERANCE[torch.float64]


def test_a_strided_gradient_multiplies_no_more_than_the_convolution() -> None:
    mask = torch.rand(16, 8, 3, 3) < 0.2
    job = input_grad_job((1, 8, 32, 32), mask, (2, 2), (1, 1), (1, 1), 1)
    assert job is not None
    assert int(job.mask.sum()) == int(mask.sum())
    assert job.problem.size == (18, 18)  # 16 outputs of each phase, 1 beside them, and 1 that the 3×3 window adds
    assert RecordProblem.of(job.problem).window_taps == 9


@pytest.mark.parametrize(("dtype", "density"), [(torch.float32, 0.05), (torch.float16, 0.003)])
def test_masks_are_packed_when_they_come_again(
    dtype: torch.dtype, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models choose the sparse kernels here; another dtype of x is another plan of the same mask."""
    gpu = EmulatedGpu(is_emulated=False)
    weight = torch.randn(256, 256, 3, 3).to(dtype)
    mask = torch.rand(weight.shape) < density
    x = torch.randn(1, 256, 26, 26).to(dtype)
    with dispatched(gpu, monkeypatch), torch.no_grad():
        for seen in (0, 1, 2):
            prunekit.masked_conv2d(x, weight, mask, None, 1, 1)
            assert len(gpu.launches) == seen
        weight.mul_(2)  # new weights need no new packing
        y = prunekit.masked_conv2d(x, weight, mask, None, 1, 1)
        expected = torch.conv2d(x, torch.where(mask, weight, 0), None, 1, 1)
        assert relative_difference(expected, y) <= TOLERANCE[dtype]
        assert len(gpu.launches) == 3
        prunekit.masked_conv2d(x.bfloat16(), weight.bfloat16(), mask, None, 1, 1)  # 7.5 has no kernel for it
        assert len(gpu.launches) == 3
        mask[:128] = False  # a new mask does
        y = prunekit.masked_conv2d(x, weight, mask, None, 1, 1)
        assert len(gpu.launches) == 3
        y = prunekit.masked_conv2d(x, weight, mask, None, 1, 1)
        assert len(gpu.launches) == 4
        assert not bool(y[:, :128].any())
        gpu.is_capturing = True
        prunekit.masked_conv2d(x[:, :, :13], weight, mask, None, 1, 1)
        prunekit.masked_conv2d(x[:, :, :13], weight, mask, None, 1, 1)
        assert len(gpu.launches) == 4, "nothing is packed while a graph is captured"


def test_dense_layers_other_dtypes_and_missing_kernels_run_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = EmulatedGpu(is_emulated=False)
    x, weight = torch.randn(1, 8, 9, 9), torch.randn(8, 8, 3, 3)
    mask = torch.rand(weight.shape) < 0.9
    with dispatched(gpu, monkeypatch):
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            for _ in range(3):
                y = prunekit.masked_conv2d(x.to(dtype), weight.to(dtype), mask)
            expected = torch.conv2d(x.to(dtype), torch.where(mask, weight, 0).to(dtype))
            assert relative_difference(expected, y) <= TOLERANCE[dtype]
    assert gpu.launches == []
    assert cuda.device_of(x) is None


@needs_compiler
@pytest.mark.usefixtures("always_sparse")
def test_a_masked_module_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    gpu = EmulatedGpu()
    dense = torch.nn.Conv2d(5, 6, 3, 2, 1)
    mask = torch.rand(dense.weight.shape) < 0.4
    here, there = (MaskedConv2d.from_dense(dense, mask) for _ in range(2))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (here, there)]
    for step in range(4):
        x = torch.randn(2, 5, 9, 11)
        for module, optimizer in zip((here, there), optimizers, strict=True):
            leaf = x.clone().requires_grad_()
            optimizer.zero_grad()
            if module is here:
                with dispatched(gpu, monkeypatch):
                    module(leaf).square().mean().backward()
            else:
                module(leaf).square().mean().backward()
            optimizer.step()
        assert len(gpu.launches) == 2 * step
    assert torch.allclose(here.weight, there.weight, atol=1e-6)
    assert here.bias is not None
    assert there.bias is not None
    assert torch.allclose(here.bias, there.bias, atol=1e-6)


def test_fake_cuda_tensors_give_shapes_and_gradients() -> None:
    with FakeTensorMode():
        x, weight = torch.empty(2, 6, 20, 30, device="cuda"), torch.empty(4, 3, 3, 3, device="cuda")
        y = prunekit.masked_conv2d(x, weight, weight > 0, None, 2, 1, 1, 2)
        geometry = [2, 2], [1, 1], [1, 1], 2
        grad_x = torch.ops.prunekit.masked_conv2d_input_grad(y, weight, weight > 0, x.shape, *geometry)
        grad_weight = torch.ops.prunekit.masked_conv2d_weight_grad(y, x, weight, weight > 0, *geometry)
    assert (y.shape, y.device.type) == ((2, 4, 10, 15), "cuda")
    assert (grad_x.shape, grad_weight.shape, grad_x.device.type) == (x.shape, weight.shape, "cuda")


def test_sums_of_large_halves_are_no_infinities() -> None:
    x = torch.full((1, 1, 40, 40), 6e4).half()
    assert is_finite(x)
    for special in (torch.inf, -torch.inf, torch.nan):
        x[0, 0, 3, 4] = special
        assert not is_finite(x)


def test_half_precision_weights_fill_their_pattern_as_packing_them_does() -> None:
    generator = torch.Generator().manual_seed(8)
    for case in random_cases(20, seed=54, max_size=4):
        weight = case.weight.to(torch.bfloat16)
        weight[torch.rand(weight.shape, generator=generator) < 0.2] = -0.0
        what = weight, case.mask, case.groups
        for chunk in (3, 16):
            filled: list[tuple[PackedFilter, PackedFilter]] = [
                (fragment_packer(*what[1:])(chunk).fill(weight), pack_fragments(*what, chunk)),
                (semi_structured_packer(*what[1:])(chunk, 2).fill(weight), pack_semi_structured(*what, chunk, 2)),
            ]
            for a, b in filled:
                assert a.header == b.header
                assert all(torch.equal(*pair) for pair in zip(_bits(a), _bits(b), strict=True))
            bitmaps, packed = bitmap_packer(*what[1:])(chunk).fill(weight), pack_bitmaps(*what, chunk)
            assert bitmaps.header == packed.header
            assert torch.equal(bitmaps.starts, packed.starts)
            assert torch.equal(bitmaps.records, packed.records)
            # Values that fill a run up are any; elsewhere a kept -0.0 stays one, as the bitmap says what is kept.
            assert torch.equal(bitmaps.weight(), packed.weight())
            assert torch.equal(bitmaps.unpack()[1], case.mask)


def _bits(packed: PackedFilter) -> list[Tensor]:
    tensors = [part for part in packed.arguments() if isinstance(part, Tensor)]
    return [t.view(torch.int16) if t.dtype == torch.bfloat16 else t for t in tensors]
