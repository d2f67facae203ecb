"""Tests of the kernel on sparse tensor cores and of its packing test themselves: planted bugs that they must catch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunekit.ops.cuda.semi_structured import filter as semi_structured_filter
from prunekit.ops.cuda.semi_structured import quad_order
from prunekit.ops.cuda.semi_structured.filter import pack_semi_structured
from tests.support.emulated_kernels import COMPILER, FilterCase
from tests.support.oracles import masked_conv2d_oracle
from tests.support.planted_bugs import all_caught
from tests.support.semi_structured_problems import semi_structured_problems

SPARSE, KERNEL, STAGE = "semi_structured/conv2d.cuh", "condensed/conv2d.cuh", "condensed/stage.cuh"
MUTANTS = {
    "halves of the metadata swapped": (SPARSE, "lane / 4 * 2 + lane % 2 +", "lane / 4 * 2 + 1 - lane % 2 +", ""),
    "the second fragment takes the first one's metadata": (SPARSE, "lane % 4 / 2 * WORDS", "0 * WORDS", ""),
    "the wrong lanes' metadata are selected": (
        SPARSE,
        "multiply_add_sparse<IS_BFLOAT16, 1>",
        "multiply_add_sparse<IS_BFLOAT16, 0>",
        "",
    ),
    "all fragments take the first one's weights": (
        SPARSE,
        "weights[(step * FRAGMENTS + f) * 32]",
        "weights[step * FRAGMENTS * 32]",
        "",
    ),
    "all units take the first one's inputs": (SPARSE, "tap + offset[unit]", "tap + offset[0]", ""),
    "the last metadata are not copied": (STAGE, "at < count * STEP.metadata;", "at < count * STEP.metadata - 1;", ""),
    "metadata stand where taps do": (STAGE, "taps + num_steps * (STEP.columns / 4)", "taps", ""),
    "only the first fragment's rows are stored": (KERNEL, "group * FRAGMENTS + fragment,", "group * FRAGMENTS,", ""),
    "slices of the first fragment are added to all": (
        KERNEL,
        "sum[i / 4 / UNITS][i / 4 % UNITS][i % 4] +=",
        "sum[0][i / 4 % UNITS][i % 4] +=",
        "",
    ),
    "inf and nan meet the columns of eight rows above": (SPARSE, "(16 * row + place)", "place", ""),
    "inf and nan meet the first of two columns": (SPARSE, "stored % 2 * 2, half", "0, half", ""),
    "inf and nan meet the first four quads' columns": (
        SPARSE,
        "metadata[at * WORDS + quad / 4]",
        "metadata[at * WORDS]",
        "",
    ),
}


def _problems() -> list[tuple[FilterCase, Tensor]]:
    """Random ones, more that add slices of several fragments, and some whose inputs hold inf."""
    drawn = list(semi_structured_problems(60, seed=95, max_size=8))
    sliced = [problem for problem in drawn[15:] if problem[0].launch[5] > 1 and problem[0].packed.header.fragments > 1]
    problems = [*drawn[:15], *sliced[:4]]
    for case, expected in problems[:9]:
        if not expected.numel():
            continue
        conv = replace(case.conv, x=case.conv.x.clone(), bias=None, residual=None, activation="none")
        torch.as_strided(conv.x, (conv.x.numel(),), (1,))[conv.x.numel() // 2] = torch.inf
        weight, mask = case.packed.unpack()
        geometry = conv.stride, conv.padding, conv.dilation, case.packed.header.groups
        problems.append((replace(case, conv=conv), masked_conv2d_oracle(conv.x, weight, mask, None, *geometry)))
    return problems


@pytest.fixture(scope="module")
def caught() -> dict[str, bool]:
    return all_caught(MUTANTS, _problems())


@pytest.mark.skipif(not COMPILER, reason="no g++ to compile the emulated kernels with")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(name: str, caught: dict[str, bool]) -> None:
    assert caught[name]


#: Of prunekit/ops/cuda/semi_structured/quad_order.py: a text and its replacement.
PACKING = {
    "what finds no place is lost": ("self.kept[run, slot] = behind", "self.kept[run, slot] = 0"),
    "a quad takes three of a row": ("self.twice[run] |= self.once[run] & rows", "pass"),
}


@pytest.mark.parametrize("name", PACKING)
def test_a_weight_lost_in_packing_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, replacement = PACKING[name]
    source = Path(quad_order.__file__).read_text()
    assert source.count(text) == 1
    planted: dict[str, object] = {"__name__": "planted"}
    exec(source.replace(text, replacement), planted)
    monkeypatch.setattr(semi_structured_filter, "order_columns", planted["order_columns"])
    weight = torch.randn(32, 16, 3, 3).half()
    mask = torch.rand(weight.shape) < 0.4
    unpacked, read = pack_semi_structured(weight, mask, 1, 16, 1).unpack()
    assert not (torch.equal(read, mask) and torch.equal(unpacked, torch.where(mask, weight, 0)))
