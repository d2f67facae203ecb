"""Semi-structured filters: every kept weight has one place, rows store two of four, few columns come again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prunekit_kernels import condense
from torch import Tensor

from prunekit.errors import InputError
from prunekit.ops.cuda.condensed.filter import DTYPES
from prunekit.ops.cuda.semi_structured.filter import (
    FRAGMENTS,
    SemiStructuredFilter,
    SemiStructuredHeader,
    cover_columns,
    pack_semi_structured,
)
from prunekit.ops.cuda.semi_structured.op import semi_structured_conv2d_reference
from tests.support.conv_cases import random_cases
from tests.support.semi_structured_problems import semi_structured_problems


def _dropped(values: Tensor) -> Tensor:
    return (values == 0) & values.signbit()


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_and_reading_back_gives_the_weight(dtype: torch.dtype) -> None:
    for number, case in enumerate(random_cases(50, seed=81, max_size=8)):
        weight, fragments = case.weight.to(dtype), FRAGMENTS[number % 3]
        for chunk_channels in (1, 3, 16):
            packed = pack_semi_structured(weight, case.mask, case.groups, chunk_channels, fragments)
            unpacked, mask = packed.unpack()
            assert torch.equal(mask, case.mask)
            assert torch.equal(unpacked, torch.where(case.mask, weight, 0))
            # Once each: places that hold a weight are as many as the weights.
            assert int((~_dropped(packed.fragments)).sum()) == packed.header.nnz == int(case.mask.sum())
            assert SemiStructuredHeader.read(packed.header.words()) == packed.header


def test_kept_zeros_stay_kept() -> None:
    weight = torch.zeros(3, 2, 1, 1, dtype=torch.float16)
    mask = torch.tensor([[1, 0], [0, 0], [1, 1]]).view(3, 2, 1, 1) > 0
    for zeros in (weight, -weight):
        assert torch.equal(pack_semi_structured(zeros, mask, 1, 4, 1).unpack()[1], mask)


def _packed(density: float, fragments: int, chunk: int = 32) -> SemiStructuredFilter:
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(128, 64, 3, 3, generator=generator).half()
    return pack_semi_structured(weight, torch.rand(weight.shape, generator=generator) < density, 1, chunk, fragments)


@pytest.mark.parametrize("fragments", FRAGMENTS)
def test_metadata_name_two_places_in_ascending_order(fragments: int) -> None:
    for density in (0.05, 0.5, 1.0):
        words = _packed(density, fragments).metadata.long() & 0xFFFFFFFF
        for quad in range(8):  # of two rows: four quads each
            first, second = words >> 4 * quad & 3, words >> 4 * quad + 2 & 3
            assert bool((first < second).all())


def test_few_columns_come_again_where_four_fifths_are_zeros() -> None:
    for fragments, density, most in ((1, 0.2, 1.02), (2, 0.2, 1.1), (4, 0.2, 1.12), (4, 0.1, 1.05), (4, 1.0, 2.01)):
        header = _packed(density, fragments, chunk=64).header
        places = 32 * header.num_steps * fragments / (128 / 16 * 64 * 9)
        assert places < most, (fragments, density)


def test_a_row_with_all_weights_takes_two_places_a_column() -> None:
    weight = torch.randn(1, 16, 1, 1).half()
    header = pack_semi_structured(weight, weight == weight, 1, 16, 1).header
    assert header.num_steps == 1  # 16 weights, two of four columns


def test_one_condensed_filter_serves_several_covers() -> None:
    weight = torch.randn(90, 30, 3, 3).half()
    mask = torch.rand(weight.shape) < 0.15
    condensed = condense(weight, mask, 2)
    for chunk, fragments in ((4, 1), (30, 2), (7, 4)):
        assert torch.equal(cover_columns(condensed, chunk, fragments).unpack()[1], mask)


def test_the_reference_agrees_with_the_oracle() -> None:
    from tests.support.oracles import TOLERANCE, relative_difference

    for case, expected in semi_structured_problems(30, seed=82):
        y = semi_structured_conv2d_reference(*case.arguments())
        assert y.dtype == case.conv.x.dtype
        assert relative_difference(expected, y) <= TOLERANCE[y.dtype]
        assert torch.equal(y, torch.ops.prunekit.semi_structured_conv2d(*case.arguments()))


def test_opcheck() -> None:
    case, _ = next(semi_structured_problems(1, seed=83))
    torch.library.opcheck(torch.ops.prunekit.semi_structured_conv2d.default, case.arguments())


def test_wrong_filters_are_refused() -> None:
    weight = torch.randn(6, 5, 3, 3).half()
    mask = weight > 0
    for arguments, words in (
        ((weight.float(), mask, 1, 4, 1), "float16 or bfloat16 weight"),
        ((weight, mask[:5], 1, 4, 1), "bool mask"),
        ((weight, mask, 4, 4, 1), "not divisible by groups 4"),
        ((weight / 0, mask, 1, 4, 1), "finite weights"),
        ((weight, mask, 1, 0, 1), "chunk_channels must be"),
        ((weight, mask, 1, 4, 3), "fragments must be one of"),
    ):
        with pytest.raises(InputError, match=words):
            pack_semi_structured(*arguments)
    packed = pack_semi_structured(weight, mask, 1, 2, 2)
    with pytest.raises(InputError, match="header tells of"):
        replace(packed, metadata=packed.metadata[1:]).unpack()
    with pytest.raises(InputError, match="10 numbers"):
        SemiStructuredHeader.read([1, 2, 3])
