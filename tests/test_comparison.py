"""The gate of every fast path: what it lets pass, what it stops, and that it counts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.comparison import TOLERANCES, Comparison, check_equal, compare, relative_rms
from prunekit.errors import WrongOutputError

INF = float("inf")


def test_counts_what_was_compared() -> None:
    outputs = {"a": torch.ones(2, 3), "b": [torch.ones(4), torch.ones(0)], "c": SimpleNamespace(d=torch.ones(1))}
    found = compare(outputs, outputs)
    assert (found.tensors, found.elements, found.inputs, found.relative_rms) == (3, 11, 1, 0)
    both = found + compare(torch.ones(5), torch.full((5,), 1.5))
    assert (both.tensors, both.elements, both.inputs, both.relative_rms) == (4, 16, 2, 0.5)
    assert str(both) == "16 numbers in 4 tensors of 2 inputs"


@pytest.mark.parametrize("output", [[], {}, None, 3, torch.ones(0), SimpleNamespace(a=1), (torch.ones(2, 0), "x")])
def test_nothing_to_compare_is_no_proof(output: object) -> None:
    assert compare(output, output).elements == 0
    with pytest.raises(WrongOutputError, match="the outputs hold no number"):
        check_equal(output, output, "the model")


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4),
    st.data(),
    st.sampled_from([float("nan"), INF, -INF, 1e3]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32]),
)
def test_a_wrong_number_anywhere_is_seen(count: int, data: st.DataObject, wrong: float, dtype: torch.dtype) -> None:
    outputs = [torch.ones(3, dtype=dtype) for _ in range(count)]
    changed = [tensor.clone() for tensor in outputs]
    check_equal(outputs, changed, "the model")
    place = data.draw(st.integers(0, count - 1))
    changed[place][data.draw(st.integers(0, 2))] = wrong if dtype.is_floating_point else 7
    with pytest.raises(WrongOutputError, match=rf"the model differs from the original by .* at \[{place}\]"):
        check_equal(outputs, changed, "the model")
    with pytest.raises(WrongOutputError):
        check_equal(changed, outputs, "the model")


def test_nan_and_infinity_may_stand_where_they_stood() -> None:
    x = torch.tensor([1.0, float("nan"), INF, -INF])
    assert relative_rms(x, x.clone()) == 0
    assert relative_rms(x, torch.tensor([1.0, INF, INF, -INF])) == INF
    assert relative_rms(x, torch.tensor([1.0, float("nan"), -INF, -INF])) == INF


def test_shapes_that_broadcast_are_not_equal() -> None:
    assert relative_rms(torch.ones(3, 1), torch.ones(1, 3)) == INF
    with pytest.raises(WrongOutputError, match=r"Expected shape \[3, 1\], got \[1, 3\]"):
        compare(torch.ones(3, 1), torch.ones(1, 3))
    with pytest.raises(WrongOutputError, match=r"Expected torch\.float32, got torch\.float64 at \[0\]"):
        compare([torch.ones(3)], [torch.ones(3).double()])


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_each_dtype_has_its_tolerance(dtype: torch.dtype) -> None:
    x = torch.linspace(1, 2, 64, dtype=torch.float64)
    step = TOLERANCES[dtype]
    expected = x.to(dtype)
    check_equal(expected, (x * (1 + step / 4)).to(dtype), "the model")
    with pytest.raises(WrongOutputError):
        check_equal(expected, (x * (1 + 4 * step)).to(dtype), "the model")


def test_comparisons_join_to_the_worse() -> None:
    worse = Comparison(1, 2, 0.5, 3.0, 0.25, 1, "[1]")
    assert (Comparison() + worse).worst == "[1]"
    assert (worse + Comparison()).relative_rms == 0.5
