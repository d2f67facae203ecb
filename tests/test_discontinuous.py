"""Comparisons up to decisions: ties may fall either way, and a wrong number is found wherever it flows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prunekit.discontinuous import check_continuous
from prunekit.errors import WrongOutputError

_ROUNDING = 1 + 2e-7


def _scores(seed: int = 0) -> Tensor:
    """Scores [40] of which many are equal but for rounding."""
    return torch.randint(1, 5, (40,), generator=torch.Generator().manual_seed(seed)) / 4


def _jittered(x: Tensor) -> Tensor:
    """Return x with rounding errors of another algorithm."""
    return x * (1 + (torch.arange(x.numel()) % 3 - 1).reshape(x.shape) * 1e-7)


def _topk(x: Tensor) -> Tensor:
    values, places = x.topk(10)
    return torch.cat([values, places.float(), torch.linspace(0, 1, 40)[places]])


def _argmax(x: Tensor) -> Tensor:
    return x.reshape(8, 5).argmax(1)


def _suppress(x: Tensor) -> Tensor:
    """Loop as greedy suppression does: take the best, drop its neighbors, until nothing is left."""
    boxes = torch.arange(40.0) * x
    kept = []
    while float(x.max()) > 0:
        best = int(x.argmax())
        kept.append(boxes[best])
        x = torch.where((boxes - boxes[best]).abs() < 4, torch.zeros_like(x), x)
    return torch.stack(kept)


def _in_place(x: Tensor) -> Tensor:
    y = x * 2  # a whole number or just below it
    return y.floor_().mul_(3) + x


def _nothing(x: Tensor) -> Tensor:
    return x[x > 2]


_ENDS = [_topk, _argmax, _suppress, _in_place, _nothing]


@pytest.mark.parametrize("end", _ENDS)
def test_ties_are_no_difference(end: Callable[[Tensor], Tensor]) -> None:
    x = _scores()
    found = check_continuous(lambda: end(x), lambda: end(_jittered(x)), "the fast one")
    assert found.comparison.elements >= 40
    assert found.comparison.relative_rms < 1e-6
    assert found.operators


@pytest.mark.parametrize("end", _ENDS)
def test_a_wrong_number_is_a_difference(end: Callable[[Tensor], Tensor]) -> None:
    x = _scores()
    wrong = x.clone()
    wrong[7] *= 1.01
    with pytest.raises(WrongOutputError, match=r"the fast one differs.*relative RMS"):
        check_continuous(lambda: end(x), lambda: end(wrong), "the fast one")


def test_what_follows_a_decision_is_compared() -> None:
    x, head = _scores(), torch.rand(40)

    def end(scores: Tensor, values: Tensor) -> Tensor:
        return values[scores.topk(3).indices] * 2

    def wrong() -> Tensor:
        return end(_jittered(x), head) + 0.01

    check_continuous(lambda: end(x, head), lambda: end(_jittered(x), head), "the fast one")
    with pytest.raises(WrongOutputError, match="differs"):
        check_continuous(lambda: end(x, head), wrong, "the fast one")
    with pytest.raises(WrongOutputError, match=r"flows into aten\.index"):
        check_continuous(lambda: end(x, head), lambda: end(x, head + 0.01), "the fast one")


def test_numbers_that_are_picked_by_nobody_are_compared() -> None:
    """Boxes of a detector that finds nothing reach no output, and are to be right nevertheless."""
    scores, boxes = _scores(), torch.rand(40, 4)

    def end(values: Tensor) -> Tensor:
        return values[scores > 2]

    assert not end(boxes).numel()
    found = check_continuous(lambda: end(boxes), lambda: end(boxes * _ROUNDING), "the fast one")
    assert found.comparison.elements == 40 + 160
    with pytest.raises(WrongOutputError, match=r"aten\.index"):
        check_continuous(lambda: end(boxes), lambda: end(boxes + 0.01), "the fast one")


def test_branches_take_the_way_of_the_fast_one() -> None:
    x = torch.full((4,), 0.25)

    def end(y: Tensor) -> Tensor:
        return y * 2 if y.sum() >= 1 else y * 3

    found = check_continuous(lambda: end(x), lambda: end(x * (1 - 1e-7)), "the fast one")
    assert "aten.ge.Scalar" in found.operators


def test_operators_in_another_order_are_found() -> None:
    a, b = _scores(1), _scores(2)
    check_continuous(
        lambda: [a.topk(3).values, b.topk(3).indices],
        lambda: [(second := _jittered(b).topk(3).indices), [a.topk(3).values, second]][1],
        "the fast one",
    )


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(WrongOutputError, match="hold no number"):
        check_continuous(lambda: torch.zeros(0), lambda: torch.zeros(0), "the fast one")


def test_inputs_written_into_afterwards_are_compared_as_they_were() -> None:
    def end(x: Tensor) -> Tensor:
        y = x + 0
        mask = y > 0.6
        y.zero_()
        return mask

    x = _scores()
    found = check_continuous(lambda: end(x), lambda: end(_jittered(x)), "the fast one")
    assert found.comparison.elements == 80
