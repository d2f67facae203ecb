"""The machine's rates are measured, and the multiply-add loop is preferred where the extension has it."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest

from prunekit.benchmark import machine
from prunekit.benchmark.machine import Machine, Peak
from prunekit.ops import native


def test_rates_are_positive_and_the_best_of_two_is_kept(one_thread: None) -> None:
    peak = Peak.measure()
    assert peak.dense_gemm_gflops > 0.1
    assert peak.stream_gb_per_s > 0.1
    assert peak.shared_write_ns is None  # of one thread
    better = Peak(peak.peak_gflops * 2, peak.peak_kind, peak.dense_gemm_gflops / 2, peak.stream_gb_per_s / 2, 7.5)
    assert peak.best(better) == Peak(
        peak.peak_gflops * 2, peak.peak_kind, peak.dense_gemm_gflops, peak.stream_gb_per_s, 7.5
    )
    assert better.best(replace(better, shared_write_ns=28.0)).shared_write_ns == 28.0


@pytest.mark.skipif(not native.is_available(), reason="the compiled extension is not there")
def test_writing_what_another_core_has_read_takes_nanoseconds() -> None:
    assert 0 < native.shared_write_ns() < 1e5


@pytest.mark.skipif(not native.is_available(), reason="the compiled extension is not there")
def test_the_multiply_add_loop_is_the_peak_where_it_can_be_believed(
    monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    extension = importlib.import_module("prunekit._native")
    monkeypatch.setattr(machine, "_gemm_gflops", lambda threads: 50.0)
    monkeypatch.setattr(machine, "_FLOPS_A_CYCLE", {native.native_status().instruction_set: 32})
    for rate, expected in ((100.0, (100.0, "fma")), (40.0, (50.0, "fma")), (622.0, (50.0, "dense_gemm"))):
        monkeypatch.setattr(extension, "fma_peak_gflops", lambda rate=rate: rate, raising=False)
        peak = Peak.measure()
        assert (peak.peak_gflops, peak.peak_kind) == expected
    monkeypatch.delattr(extension, "fma_peak_gflops")
    assert Peak.measure().peak_kind == "dense_gemm"


def test_a_machine_is_equal_to_itself_and_to_no_other() -> None:
    here = Machine.here()
    assert here == Machine.here()
    assert here.versions["torch"]
    assert here != Machine(here.system, here.cpu, here.instruction_set, here.versions, "0" * 12)
