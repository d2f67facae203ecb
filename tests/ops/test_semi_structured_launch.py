"""The model of the kernel on sparse tensor cores: what it expects of random masks, its floors and its choice."""

from __future__ import annotations

import math

import pytest
import torch

from prunekit.ops.cuda.condensed.cost import MODEL as CONDENSED
from prunekit.ops.cuda.condensed.cost import CondensedProblem
from prunekit.ops.cuda.devices import GPUS
from prunekit.ops.cuda.semi_structured.cost import MODEL, RESIDENT_WARPS, expected_steps
from prunekit.ops.cuda.semi_structured.filter import FRAGMENTS, pack_semi_structured

SPARSE = [gpu for gpu in GPUS.values() if gpu.capability >= 80]


@pytest.mark.parametrize("fragments", FRAGMENTS)
def test_expected_steps_are_those_of_a_random_mask(fragments: int) -> None:
    generator = torch.Generator().manual_seed(4)
    for kernel, density, chunk in ((3, 0.5, 32), (3, 0.25, 32), (3, 0.1, 32), (1, 0.2, 96), (3, 0.01, 32)):
        weight = torch.randn(128, 96, kernel, kernel).half()
        mask = torch.rand(weight.shape, generator=generator) < density
        problem = CondensedProblem(128, 96, (kernel, kernel), 1, density, 1, (20, 20))
        header = pack_semi_structured(weight, mask, 1, chunk, fragments).header
        expected = header.num_row_groups * 96 / chunk * float(expected_steps(problem, chunk, fragments))
        # Permuted channels share a few taps more than random ones.
        assert header.num_steps == pytest.approx(expected, rel=0.12), (kernel, density)


def test_the_model_is_above_its_floors_and_falls_with_the_weights() -> None:
    for device in SPARSE:
        before = math.inf
        for density in (0.7, 0.3, 0.1, 0.01):
            problem = CondensedProblem(256, 128, (3, 3), 1, density, 1, (52, 52), padding=(1, 1))
            chosen = MODEL.choose_launch(problem, device)
            assert chosen is not None
            launch, seconds = chosen
            assert seconds == MODEL.modeled_seconds(problem, launch, device)
            multiply_adds = 256 * 128 * 9 * density * 52 * 52  # at the very least two of four are kept
            floor = multiply_adds / (device.tensor_peak_gflops * 1e9)
            assert max(floor, MODEL.memory_seconds(problem, launch, device)) < seconds <= before
            assert MODEL.shared_bytes(problem, launch) <= device.shared_bytes
            before = seconds


def test_the_best_cut_is_the_least_modeled() -> None:
    problem, gpu = CondensedProblem(64, 32, (3, 3), 1, 0.1, 2, (17, 23), (2, 2)), GPUS["a100"]
    best = MODEL.best_launches(problem, gpu, 5)
    times = [MODEL.modeled_seconds(problem, launch, gpu) for launch in best]
    assert len(best) == 5
    assert times == sorted(times)
    assert (best[0], times[0]) == MODEL.choose_launch(problem, gpu)
    assert all((launch.fragments, launch.warp_units) in RESIDENT_WARPS for launch in best)


def test_gpus_without_sparse_tensor_cores_run_none() -> None:
    problem = CondensedProblem(64, 32, (3, 3), 1, 0.1, 2, (17, 23))
    assert MODEL.choose_launch(problem, GPUS["rtx-2070-super"]) is None
    assert MODEL.best_launches(problem, GPUS["rtx-2070-super"], 3) == ()


def test_sparse_products_gain_over_dense_ones_where_products_decide() -> None:
    """An RTX 4090 multiplies slowly beside its shared memory, so half the products are worth having."""
    problem = CondensedProblem(512, 256, (3, 3), 1, 0.1, 16, (26, 26), padding=(1, 1))
    sparse = MODEL.choose_launch(problem, GPUS["rtx-4090"])
    dense = CONDENSED.choose_launch(problem, GPUS["rtx-4090"])
    assert sparse is not None
    assert dense is not None
    assert 1.2 < dense[1] / sparse[1] < 2.2
