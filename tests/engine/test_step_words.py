"""The words of a plan's steps: C++ declares them once, and Python has their order and numbers from there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunekit.engine import step_words
from prunekit.engine.activations import ACTIVATIONS
from prunekit.engine.filters import ConvChoice
from prunekit.engine.step_words import STEP_WORDS, StepKind, number_of, pack_step, step_kinds
from prunekit.ops import native
from prunekit.ops.native import native_status
from tests.support import ROOT
from tests.support.conv_variants import conv_of_reading

needs_native = pytest.mark.skipif(not native_status().available, reason="the compiled extension is not built")
COMPILER = shutil.which("g++") or ""

# What C++ tells of a struct, and where its fields really are.
OFFSETS = """
#include <cstddef>
#include <cstdio>
#include "plan.h"
int main() {
  using prunekit::ConvStep;
  std::printf("%s\\n%zu %zu %zu\\n", prunekit::ConvStepFields, offsetof(ConvStep, vectors) / 8,
              offsetof(ConvStep, tile_vectors) / 8, sizeof(ConvStep) / 8);
}
"""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    step_kinds.cache_clear()
    number_of.cache_clear()


@needs_native
def test_every_kind_names_each_of_its_words_once() -> None:
    kinds = step_kinds()
    assert [kind.number for kind in kinds.values()] == list(range(len(kinds)))
    for _, name, _, words in native.step_declarations():
        if name in kinds:
            assert len(set(kinds[name].names)) == len(kinds[name].names) == words < STEP_WORDS
    assert kinds["halo"].names == ("y", "y_channel", "channels", "vectors", "front", "back", "fill")
    assert kinds["conv"].names[15:20] == (
        "residual_channel", "before.activation", "before.parameter", "after.activation", "after.parameter",
    )  # fmt: skip


@needs_native
def test_both_sides_know_the_same_activations() -> None:
    assert [number_of("LaneActivation", kind) for kind in ACTIVATIONS] == list(range(len(ACTIVATIONS)))
    (text,) = (text for _, name, text, _ in native.step_declarations() if name == "LaneActivation")
    assert len(text.split()) == len(ACTIVATIONS)


def _extension(fields: str) -> list[tuple[int, str, str, int]]:
    return [(3, "halo", fields, fields.count(",") + fields.count(";")), (-1, "Pair", "int64_t a; double b;", 2)]


def test_words_go_where_the_extension_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"y": 1, "front": 2, "back": 3}
    for fields, row in (("int64_t y, front; double back;", [3, 1, 2, 3]), ("int64_t back, y, front;", [3, 3, 1, 2])):
        monkeypatch.setattr(native, "step_declarations", lambda fields=fields: _extension(fields))
        step_kinds.cache_clear()
        assert pack_step("halo", words) == row + [0] * (STEP_WORDS - len(row))


@pytest.mark.parametrize("fields", ["int64_t y, front;", "int64_t y, front, rear;", "int64_t y, front, back, more;"])
def test_other_words_are_refused_in_one_sentence(fields: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "step_declarations", lambda: _extension(fields))
    step_kinds.cache_clear()
    with pytest.raises(RuntimeError, match=r"^Expected a halo step of the words back, front, y, got .*: reinstall"):
        pack_step("halo", {"y": 1, "front": 2, "back": 3})


def test_structs_in_a_struct_are_words_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = [(0, "conv", "const int32_t* index; Pair before, after; double fill;", 6), *_extension("int64_t y;")]
    monkeypatch.setattr(native, "step_declarations", lambda: declared)
    step_kinds.cache_clear()
    assert step_kinds()["conv"].names == ("index", "before.a", "before.b", "after.a", "after.b", "fill")


@needs_native
@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [("conv", "x_channel", "y_channel"), ("conv", "vectors", "tile_vectors"), ("halo", "channels", "vectors")],
)
def test_two_words_that_change_places_on_one_side_are_seen(
    kind: str, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan whose words are not in the extension's order is damaged, or computes something else."""
    known = step_kinds()
    swapped = {first: second, second: first}
    names = tuple(swapped.get(name, name) for name in known[kind].names)
    conv, choice = conv_of_reading("16 bits"), ConvChoice(1, 2, 2)
    (expected,) = conv.results([choice])
    monkeypatch.setattr(step_words, "step_kinds", lambda: {**known, kind: StepKind(known[kind].number, names)})
    y, refusal = expected, ""
    try:
        (y,) = conv.results([choice])
    except RuntimeError as error:
        refusal = str(error)
    assert "a plan's step is damaged" in refusal or not torch.equal(y, expected)


@needs_native
def test_an_extension_of_another_version_says_so_where_it_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    known = step_kinds()
    older = replace(known["conv"], names=known["conv"].names[:-1])
    monkeypatch.setattr(step_words, "step_kinds", lambda: {**known, "conv": older})
    with pytest.raises(RuntimeError, match="it is of another version: reinstall prunekit from source"):
        conv_of_reading("16 bits").results([ConvChoice(1, 2, 2)])


@pytest.mark.skipif(not COMPILER, reason="no g++")
def test_fields_that_change_places_in_the_struct_change_them_in_what_python_reads(tmp_path: Path) -> None:
    header = (ROOT / "csrc" / "cpu" / "plan.h").read_text()
    before, after = "int64_t vectors, tile_vectors;", "int64_t tile_vectors, vectors;"
    assert before in header[: header.index("HaloStep")]  # of the convolution's struct, the first
    (tmp_path / "offsets.cpp").write_text(OFFSETS)
    for text in (header, header.replace(before, after, 1)):
        (tmp_path / "plan.h").write_text(text)
        command = [COMPILER, "-std=c++17", f"-I{tmp_path}", str(tmp_path / "offsets.cpp"), "-o", str(tmp_path / "told")]
        subprocess.run(command, check=True)
        told, numbers = subprocess.run(
            [tmp_path / "told"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        names = step_words._names(told, {"EpilogueWords": ("activation", "parameter")})
        assert [names.index("vectors"), names.index("tile_vectors"), len(names)] == list(map(int, numbers.split()))
