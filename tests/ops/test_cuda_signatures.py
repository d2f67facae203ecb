"""The words that cross from Python to the CUDA kernels: both sides name them, and differing names are refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prunekit.ops import native
from prunekit.ops.cuda.registry import SPARSE_KERNELS, compiled_signatures, signature

OURS = compiled_signatures()


def _compare(monkeypatch: pytest.MonkeyPatch, theirs: list[str] | None) -> native.CudaStatus:
    """What becomes of an extension with such signatures, or of one that has none."""
    module = SimpleNamespace(architectures=lambda: "75", toolkit_version=lambda: 13000)
    if theirs is not None:
        module.signatures = lambda: "\n".join(theirs)
    monkeypatch.setattr(native, "_CUDA", module)
    monkeypatch.setattr(native, "_CUDA_REASON", None)
    native.compare_cuda_signatures(OURS)
    return native.cuda_status()


def test_a_signature_names_header_tensors_and_launch() -> None:
    assert signature(SPARSE_KERNELS["record"]) == (
        "record_conv2d header OUT_CHANNELS GROUP_CHANNELS KERNEL_H KERNEL_W GROUPS CHUNK_CHANNELS SLICES WINDOW_TAPS "
        "NNZ NUM_RECORDS LONGEST tensors starts records rows launch tile_h lanes lanes_w row_groups buffers"
    )


def test_equal_signatures_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _compare(monkeypatch, sorted(OURS)).available


@pytest.mark.parametrize(
    ("first", "second"),
    [("lanes", "lanes_w"), ("starts", "rows"), ("SLICES", "WINDOW_TAPS"), ("starts", "columns"), ("slices", "buffers")],
)
def test_two_words_that_changed_places_are_refused(monkeypatch: pytest.MonkeyPatch, first: str, second: str) -> None:
    swapped = {first: second, second: first}
    theirs = [" ".join(swapped.get(word, word) for word in line.split()) for line in sorted(OURS)]
    assert set(theirs) != OURS
    status = _compare(monkeypatch, theirs)
    assert not status.available
    assert status.reason is not None
    assert "compiled for other arguments of" in status.reason


@pytest.mark.parametrize("theirs", [None, [], sorted(OURS)[1:], [*OURS, "new_conv2d header tensors launch"]])
def test_a_lacking_or_further_op_is_refused(monkeypatch: pytest.MonkeyPatch, theirs: list[str] | None) -> None:
    assert not _compare(monkeypatch, theirs).available
