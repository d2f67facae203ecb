"""Which kernel a GPU runs: the model's break-even, measurements, and their file, however damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prunekit
from prunekit.errors import WrongOutputError
from prunekit.ops.cuda import dispatch as cuda
from prunekit.ops.cuda.bitmap.cost import BitmapLaunch
from prunekit.ops.cuda.cache import KernelCache, KernelTimes
from prunekit.ops.cuda.choice import (
    candidates,
    choose_kernel,
    dense_seconds,
    exact_float32,
    floor_seconds,
    is_tf32_allowed,
    key_of,
    measure_kernel,
)
from prunekit.ops.cuda.condensed.cost import CondensedLaunch, CondensedProblem
from prunekit.ops.cuda.condensed.filter import pack_fragments
from prunekit.ops.cuda.condensed.op import CondensedKernel
from prunekit.ops.cuda.devices import GPUS, Gpu
from prunekit.ops.cuda.plan import ConvPlan, forward_job
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.record.cost import MODEL, RecordLaunch, RecordProblem
from prunekit.ops.cuda.registry import SPARSE_KERNELS
from prunekit.prune import MaskRule
from tests.support.emulated_dispatch import EmulatedGpu, dispatched
from tests.support.sparse_choices import HALF_KERNELS

LAYER = RecordProblem(256, 128, (3, 3), 1, 0.05, 1, (52, 52))
FLOAT = torch.float32


@pytest.mark.parametrize("name", sorted(GPUS))
def test_dense_wins_above_break_even_and_the_choice_names_both_times(name: str) -> None:
    gpu = GPUS[name]
    for density in (0.9, 0.5, 0.2, 0.1, 0.05, 0.01):
        problem = replace(LAYER, density=density)
        choice = choose_kernel(problem, FLOAT, gpu, allow_tf32=False)
        assert (choice.kernel == "record") == (choice.launch is not None)
        assert choice.seconds <= choice.dense_seconds == dense_seconds(problem, gpu)
        assert choice.seconds >= floor_seconds(problem, gpu) or choice.kernel == "dense"
        assert "µs modeled" in choice.reason
    assert (
        choose_kernel(replace(LAYER, density=0.01), FLOAT, GPUS["rtx-2070-super"], allow_tf32=False).kernel == "record"
    )
    assert choose_kernel(replace(LAYER, density=0.9), FLOAT, gpu, allow_tf32=False).kernel == "dense"


def test_tf32_and_winograd_make_dense_faster_where_they_apply() -> None:
    for name, gpu in GPUS.items():
        plain = dense_seconds(LAYER, gpu, by_winograd=False)
        assert dense_seconds(LAYER, gpu) < plain
        point = replace(LAYER, kernel_size=(1, 1))
        assert dense_seconds(point, gpu) == dense_seconds(point, gpu, by_winograd=False)
        assert (dense_seconds(LAYER, gpu, allow_tf32=True) < dense_seconds(LAYER, gpu)) == (name in ("a100", "h100"))
    a100 = GPUS["a100"]
    problem = replace(LAYER, density=0.1)
    assert choose_kernel(problem, FLOAT, a100, allow_tf32=False).kernel == "record"
    assert choose_kernel(problem, FLOAT, a100, allow_tf32=True).kernel == "dense"


def test_a_dtype_without_a_sparse_kernel_is_named() -> None:
    for dtype, name in ((torch.float64, "a100"), (torch.bfloat16, "rtx-2070-super")):
        choice = choose_kernel(LAYER, dtype, GPUS[name], allow_tf32=False)
        expected = f"no sparse kernel for {str(dtype).removeprefix('torch.')} on this device"
        assert (choice.kernel, choice.reason) == ("dense", expected)


class FasterKernel(CondensedKernel):
    """Another kernel for the same dtypes, by its model much faster."""

    name = "faster"

    def seconds(self, problem: ConvProblem, launch: CondensedLaunch, gpu: Gpu) -> float:
        return super().seconds(problem, launch, gpu) / 4


def test_a_further_kernel_is_one_more_entry_and_competes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, half, cache = GPUS["rtx-4090"], torch.float16, KernelCache(None)
    problem = replace(LAYER, density=0.005)
    alone = choose_kernel(problem, half, gpu, allow_tf32=True)
    assert alone.kernel in HALF_KERNELS
    cache.put(key_of(problem, half, gpu, True, "inference"), KernelTimes(alone.kernel, alone.launch, 1e-6, 2e-6))
    assert choose_kernel(problem, half, gpu, allow_tf32=False, cache=cache).is_measured  # tf32 is float32's matter
    monkeypatch.setitem(SPARSE_KERNELS, "faster", FasterKernel())
    both = choose_kernel(problem, half, gpu, allow_tf32=True, cache=cache)
    assert (both.kernel, both.is_measured) == ("faster", False)  # what was measured without it does not count
    assert both.sparse_seconds < alone.sparse_seconds / 2
    assert choose_kernel(problem, FLOAT, gpu, allow_tf32=False).kernel == "record"

    job = forward_job((1, 20, 9, 9), torch.rand(24, 20, 3, 3) < 0.2, (1, 1), (1, 1), (1, 1), 1)
    assert job is not None
    y, ran = torch.randn(1, 24, 9, 9).half(), list[str]()

    def run(plan: ConvPlan) -> Tensor:
        ran.append(plan.kernel.name)
        return y

    def seconds_of(call: Callable[[], Tensor]) -> float:
        before = len(ran)
        call()
        if len(ran) == before:
            return 3e-6  # dense
        return 1e-6 if ran[-1] == "condensed" else 2e-6

    where = gpu, torch.device("cpu"), half
    choice, plan = job.measure(*where, run, lambda: y, seconds_of, cache, False, cuts=2)
    assert plan is not None
    assert {name: ran.count(name) for name in ran} == dict.fromkeys(
        ("faster", *HALF_KERNELS), 4
    )  # 2 cuts, two runs each
    assert (plan.kernel.name, plan.launch) == (choice.kernel, choice.launch)
    assert (choice.kernel, choice.sparse_seconds, choice.dense_seconds) == ("condensed", 1e-6, 3e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_break_even_later_and_never_on_the_largest(dtype: torch.dtype) -> None:
    for name, gpu in GPUS.items():
        kernels = [
            choose_kernel(replace(LAYER, density=density), dtype, gpu, allow_tf32=True).kernel
            for density in (0.5, 0.1, 0.05, 0.01)
        ]
        has_cores = dtype == torch.float16 or gpu.capability >= 80
        is_sparse = name in ("rtx-2070-super", "rtx-4090") and has_cores
        assert kernels[:2] == ["dense", "dense"]
        assert (kernels[3] != "dense") == is_sparse
        assert dense_seconds(LAYER, gpu, dtype=dtype) < dense_seconds(LAYER, gpu)
        assert floor_seconds(LAYER, gpu, dtype) <= floor_seconds(LAYER, gpu)


@pytest.mark.parametrize(
    ("gpu", "batch", "density", "kernel"),
    [("rtx-2070-super", 1, 0.01, "bitmap"), ("rtx-4090", 1, 0.01, "bitmap"), ("rtx-4090", 16, 0.1, "semi_structured")],
)
def test_the_fastest_half_precision_kernel_is_chosen(gpu: str, batch: int, density: float, kernel: str) -> None:
    size = (13, 13) if batch == 1 else (26, 26)
    problem = ConvProblem(1024, 512, (3, 3), 1, density, batch, size, padding=(1, 1))
    found = candidates(problem, torch.float16, GPUS[gpu], 1)
    assert {one.kernel.name for one in found} == (HALF_KERNELS if gpu != "rtx-2070-super" else {"condensed", "bitmap"})
    choice = choose_kernel(problem, torch.float16, GPUS[gpu], allow_tf32=True)
    assert (choice.kernel, choice.launch) == (kernel, found[0].launch)
    assert choice.sparse_seconds == min(one.seconds for one in found)
    for one in found:
        assert one.kernel.launch_of(one.launch.numbers()) == one.launch
        assert one.kernel.is_possible(problem, one.launch, GPUS[gpu])
        for wrong in ({"chunk_channels": 4096}, {"warp_units": 5}, {"tile_h": 999}, {"buffers": 3}, {"slices": 9}):
            assert not one.kernel.is_possible(problem, replace(one.launch, **wrong), GPUS[gpu]), (one, wrong)
        launches, moved = one.kernel.fill_cost(problem, one.launch)
        assert launches <= 4
        assert moved >= 12 * density * problem.num_weights
    assert not SPARSE_KERNELS["bitmap"].is_possible(problem, BitmapLaunch(64, 8, 4, 2, 1, 4, 1, 1, 9), GPUS[gpu])


def test_a_kernel_of_many_taps_leaves_bitmaps_chunks_that_halfwords_count() -> None:
    problem = ConvProblem(64, 64, (16, 16), 1, 0.02, 1, (40, 40))
    (launch,) = SPARSE_KERNELS["bitmap"].best_launches(problem, GPUS["a100"], 1)
    assert launch.chunk_channels < 16
    assert not SPARSE_KERNELS["bitmap"].is_possible(problem, replace(launch, chunk_channels=16), GPUS["a100"])
    assert not SPARSE_KERNELS["bitmap"].takes(replace(problem, kernel_size=(17, 1)), torch.float16, GPUS["a100"])


def test_an_empty_mask_has_a_choice() -> None:
    assert choose_kernel(replace(LAYER, density=0.0), FLOAT, GPUS["h100"], allow_tf32=False).launch is not None
    for one in candidates(replace(LAYER, density=0.0), torch.float16, GPUS["h100"], 1):
        assert 0 < one.seconds < 1e-4


def test_a_measurement_wins_over_the_model_unless_its_cut_does_not_fit() -> None:
    gpu, cache = GPUS["rtx-2070-super"], KernelCache(None)
    (launch,) = MODEL.best_launches(LAYER, gpu, 1)
    key = key_of(LAYER, FLOAT, gpu, False, "inference")
    cache.put(key, KernelTimes("record", launch, 2e-4, 1e-4))
    choice = choose_kernel(replace(LAYER, density=0.0501), FLOAT, gpu, allow_tf32=False, cache=cache)
    assert (choice.kernel, choice.is_measured) == ("dense", True)
    assert choice.reason == "below break-even: record 200.0 µs, dense 100.0 µs measured"
    assert not choose_kernel(LAYER, FLOAT, gpu, allow_tf32=True, cache=cache).is_measured
    assert not choose_kernel(LAYER, FLOAT, gpu, allow_tf32=False, direction="forward", cache=cache).is_measured
    cache.put(key, KernelTimes("record", replace(launch, chunk_channels=4096), 1e-5, 1e-4))
    assert not SPARSE_KERNELS["record"].is_possible(LAYER, replace(launch, chunk_channels=4096), gpu)
    assert not choose_kernel(LAYER, FLOAT, gpu, allow_tf32=False, cache=cache).is_measured


@pytest.mark.parametrize("setting", ["allowed", "forbidden", "apart"])
def test_tf32_is_left_out_of_comparisons_and_put_back(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn: Any = torch.backends.cudnn
    conv = cudnn.conv
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", setting != "forbidden")
    if setting == "apart":  # the newer setting, of convolutions alone
        monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    assert is_tf32_allowed() == (setting != "forbidden")
    before = conv.fp32_precision
    with exact_float32():
        assert not is_tf32_allowed()
        assert conv.fp32_precision != "tf32"
    assert conv.fp32_precision == before
    assert is_tf32_allowed() == (setting != "forbidden")


def test_the_fastest_cut_is_chosen_and_a_wrong_one_never() -> None:
    right, wrong = torch.randn(3, 4), torch.randn(3, 4)
    cuts = [RecordLaunch(8, slices, 2, 1, 1, 1, 1) for slices in (1, 2, 3)]
    seconds = iter([3e-6, 1e-6, 2e-6, 5e-6])

    def seconds_of(call: object) -> float:
        return next(seconds)

    def call() -> Tensor:
        return right

    times, choice = measure_kernel(iter([("record", cut, call) for cut in cuts]), call, seconds_of)
    assert (choice.launch, choice.is_measured) == (cuts[1], True)
    assert times == KernelTimes("record", cuts[1], 1e-6, 5e-6)
    with pytest.raises(WrongOutputError, match="differs from the dense convolution"):
        measure_kernel(iter([("record", cuts[0], lambda: wrong)]), call, seconds_of)


def test_measurements_are_kept_for_later_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, path = EmulatedGpu(is_emulated=False), tmp_path / "kernels.json"
    x, weight = torch.randn(1, 6, 12, 12), torch.randn(8, 6, 3, 3)
    mask = torch.rand(weight.shape) < 0.3
    with dispatched(gpu, monkeypatch, KernelCache(path)):
        choices = cuda.tune_masked_conv2d(x, weight, mask, (2, 2), (1, 1))
        assert set(choices) == {"forward", "input_grad"}
        assert all(choice.is_measured and choice.kernel == "dense" for choice in choices.values())  # a tie
    again = KernelCache(path)
    assert again.note is None
    assert len(json.loads(path.read_text())["measurements"]) == 2
    with dispatched(gpu, monkeypatch, again):
        before = len(gpu.launches)
        for _ in range(2):
            prunekit.masked_conv2d(x, weight, mask, None, 2, 1)
        assert len(gpu.launches) == before


def masked_by(structure: str, ratio: float, groups: int = 1) -> Tensor:
    weight = torch.randn(128, 96 // groups, 3, 3, generator=torch.Generator().manual_seed(1))
    return MaskRule(ratio, structure, conv_groups={"": groups})({"": weight})[""]


@pytest.mark.parametrize("groups", [1, 2])
def test_the_model_counts_the_columns_that_blocks_leave(groups: int) -> None:
    """In blocks of 16 filters exactly as many as the density says, as the packer finds; 4×1 blocks leave those of 4."""
    found = {}
    for structure in ("unstructured", "block4x1", "block16x1"):
        mask = masked_by(structure, 90, groups).contiguous(memory_format=torch.channels_last)
        job = forward_job((1, 96, 20, 20), mask, (1, 1), (1, 1), (1, 1), groups)
        assert job is not None
        problem = CondensedProblem.of(job.problem)
        found[structure] = problem.kept_columns
        steps = pack_fragments(torch.ones(mask.shape).half() * mask, mask, groups, 48).header.num_steps
        expected = groups * problem.num_row_groups * (96 // groups // 48) * float(problem.steps(48))
        assert steps == pytest.approx(expected, rel=0.12), structure
    assert found["block16x1"] == pytest.approx(0.1, rel=0.02)
    assert found["block4x1"] == pytest.approx(1 - 0.9**4, rel=0.05)
    assert found["unstructured"] == pytest.approx(1 - 0.9**16, rel=0.01)


def test_blocks_of_sixteen_filters_make_the_condensed_kernel_pay_earlier() -> None:
    gpu = GPUS["rtx-2070-super"]
    seconds = {}
    for structure in ("unstructured", "block16x1"):
        job = forward_job((1, 96, 52, 52), masked_by(structure, 75), (1, 1), (1, 1), (1, 1), 1)
        assert job is not None
        assert (job.problem.shared_columns is None) == (structure == "unstructured")
        (best,) = [c for c in candidates(job.problem, torch.float16, gpu, 1) if c.kernel.name == "condensed"]
        seconds[structure] = best.seconds
    assert seconds["block16x1"] < 0.6 * seconds["unstructured"]
