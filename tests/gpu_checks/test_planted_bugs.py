"""Planted bugs are edits of the kernels' text: each text is found, once, before any compiler is asked."""

from __future__ import annotations

import pytest

from tests.gpu_checks import (
    test_bitmap_mutants,
    test_condensed_mutants,
    test_cuda_mutants,
    test_semi_structured_mutants,
)
from tests.support import ROOT
from tests.support.planted_bugs import Mutant

MUTANTS: dict[str, dict[str, Mutant]] = {
    "bitmap": test_bitmap_mutants.MUTANTS,
    "condensed": test_condensed_mutants.MUTANTS,
    "record": test_cuda_mutants.MUTANTS,
    "semi-structured": test_semi_structured_mutants.MUTANTS,
}


@pytest.mark.parametrize(
    ("kernel", "name"), [(kernel, name) for kernel, mutants in MUTANTS.items() for name in mutants]
)
def test_the_text_stands_once_in_its_file_and_is_changed(kernel: str, name: str) -> None:
    file, text, replacement, _ = MUTANTS[kernel][name]
    assert (ROOT / "csrc" / "cuda" / file).read_text().count(text) == 1
    assert replacement != text
