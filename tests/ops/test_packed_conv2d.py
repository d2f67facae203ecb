"""Packed filters: the compiled packer against its numpy twin, each instruction set's kernel against the oracle."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from prunekit.errors import InputError
from prunekit.ops.native import native_status, use_instruction_set
from prunekit.ops.packed_conv2d import ROW_CHOICES, FilterHeader, pack_filter_reference, unpack_filter
from tests.support.conv_cases import random_cases
from tests.support.oracles import TOLERANCE, masked_conv2d_oracle, relative_difference

pytestmark = pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}")


@pytest.fixture(params=native_status().supported_sets or ["none"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    in_use = native_status().instruction_set
    assert in_use is not None
    use_instruction_set(request.param)
    assert native_status().instruction_set == request.param
    yield request.param
    use_instruction_set(in_use)


@pytest.mark.parametrize("rows", ROW_CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packers_agree_word_for_word_and_unpack_to_the_weight(rows: int, dtype: torch.dtype) -> None:
    draw = random.Random(7)
    for case in random_cases(40, seed=7):
        weight, block = case.weight.to(dtype), draw.choice((1, 2, 5, 100))
        index, values = torch.ops.prunekit.pack_filter(weight, case.mask, case.groups, rows, block)
        expected = pack_filter_reference(weight, case.mask, case.groups, rows, block)
        assert torch.equal(index, expected[0])
        assert torch.equal(values, expected[1])
        unpacked, mask = unpack_filter(index, values)
        assert torch.equal(mask, case.mask)
        assert torch.equal(unpacked, torch.where(case.mask, weight, 0))
        assert FilterHeader.read(index).nnz == int(case.mask.sum())


@pytest.mark.parametrize("rows", ROW_CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_agree_with_the_oracle(instruction_set: str, rows: int, dtype: torch.dtype) -> None:
    draw = random.Random(8)
    for case in random_cases(80, seed=8):
        typed = case.to(dtype)
        packed = torch.ops.prunekit.pack_filter(typed.weight, case.mask, case.groups, rows, draw.choice((0, 1, 3)))
        expected = masked_conv2d_oracle(typed.x, typed.weight, typed.mask, typed.bias, *typed.geometry)
        for activation, slope in (("none", 0.0), ("leaky_relu", 0.1), ("leaky_relu", 0.0)):
            y = torch.ops.prunekit.packed_conv2d(
                typed.x, *packed, typed.bias, typed.weight.shape, *typed.geometry, activation, slope
            )
            activated = expected if activation == "none" else F.leaky_relu(expected, slope)
            assert relative_difference(activated, y) <= TOLERANCE[dtype]


def test_reads_nothing_outside_the_input(instruction_set: str) -> None:
    """Neighboring memory is poisoned with nan: a kernel that uses it shows it."""
    for case in random_cases(40, seed=9):
        x = case.x.float()
        arena = torch.full((x.numel() + 512,), torch.nan)
        inside = arena[256 : 256 + x.numel()].view(x.shape)
        inside.copy_(x)
        weight = case.weight.float()
        packed = torch.ops.prunekit.pack_filter(weight, case.mask, case.groups, 0, 0)
        y = torch.ops.prunekit.packed_conv2d(inside, *packed, None, weight.shape, *case.geometry, "none", 0.0)
        assert y.isfinite().all()


def test_relu_keeps_minus_infinity_out_and_nan_in() -> None:
    x = torch.tensor([-torch.inf, torch.nan, -1.0, 2.0]).view(1, 1, 1, 4)
    weight = torch.ones(1, 1, 1, 1)
    packed = torch.ops.prunekit.pack_filter(weight, weight > 0, 1, 1, 0)
    y = torch.ops.prunekit.packed_conv2d(x, *packed, None, [1, 1, 1, 1], [1, 1], [0, 0], [1, 1], 1, "leaky_relu", 0.0)
    assert y.flatten().nan_to_num(7.0).tolist() == [0.0, 7.0, 0.0, 2.0]


def test_opcheck() -> None:
    x, weight = torch.randn(1, 5, 9, 7), torch.randn(6, 5, 3, 3)
    packed = torch.ops.prunekit.pack_filter(weight, weight > 0, 1, 0, 0)
    arguments = (x, *packed, None, list(weight.shape), [1, 1], [1, 1], [1, 1], 1, "leaky_relu", 0.1)
    torch.library.opcheck(torch.ops.prunekit.packed_conv2d.default, arguments)


def test_threads_and_many_small_groups_give_the_same_bits() -> None:
    x, weight = torch.randn(2, 24, 17, 19), torch.randn(24, 1, 3, 3)
    packed = torch.ops.prunekit.pack_filter(weight, weight > 0, 24, 0, 0)

    def run() -> torch.Tensor:
        y: torch.Tensor = torch.ops.prunekit.packed_conv2d(
            x, *packed, None, weight.shape, [1, 1], [1, 1], [1, 1], 24, "none", 0.0
        )
        return y

    y, threads = run(), torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(run(), y)
    finally:
        torch.set_num_threads(threads)


def test_damaged_filters_and_wrong_arguments_are_refused() -> None:
    x, weight = torch.randn(1, 5, 9, 7), torch.randn(6, 5, 3, 3)
    index, values = torch.ops.prunekit.pack_filter(weight, weight > 0, 1, 0, 0)

    def run(x: torch.Tensor = x, index: torch.Tensor = index, values: torch.Tensor = values, groups: int = 1) -> None:
        shape, one = list(weight.shape), [1, 1]
        torch.ops.prunekit.packed_conv2d(x, index, values, None, shape, one, one, one, groups, "none", 0.0)

    with pytest.raises(RuntimeError, match="not a packed filter"):
        run(index=torch.zeros_like(index))
    with pytest.raises(RuntimeError, match="damaged"):
        run(index=index[:-1])
    with pytest.raises(RuntimeError, match="damaged"):
        run(values=values[:-1])
    with pytest.raises(RuntimeError, match=r"expects x \[N, 5, H, W\]"):
        run(x=torch.randn(1, 4, 9, 7))
    with pytest.raises(RuntimeError, match="groups 1"):
        run(groups=5)
    with pytest.raises(InputError, match="not a packed filter"):
        unpack_filter(torch.zeros(20, dtype=torch.int32), values)
    with pytest.raises(ValueError, match="not compiled in or not supported"):
        use_instruction_set("mmx")
