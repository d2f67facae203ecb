"""Plans for milliseconds: layers' times, the solver, and the correction by what the built model takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.ops.cuda.choice import choose_kernel
from prunekit.ops.cuda.devices import GPUS
from prunekit.ops.cuda.dispatch import CudaDevice
from prunekit.ops.cuda.problem import ConvProblem
from prunekit.ops.cuda.sparse_kernel import cuda_op
from prunekit.ops.native import native_status
from prunekit.prune import allocate, apply_masks, score_model
from prunekit.prune import latency as latency_module
from prunekit.prune.allocations import Part, fit, uniform
from prunekit.prune.latency import SHARES, LatencyModel, by_latency, deployed_ms
from prunekit.prune.layer_times import ConvShape, LayerTimes
from tests.support.imagined_machine import Machine, imagine_machine
from tests.support.pruning_nets import groups_of, make_model

X = torch.zeros(1, 3, 6, 6)


@pytest.fixture(name="machine")
def _machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return imagine_machine(monkeypatch)


def importance(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> float:
    return sum(float((scores[layer].abs() * mask).sum()) for layer, mask in masks.items())


@pytest.mark.parametrize("structure", ["unstructured", "block4x1", "filter"])
@pytest.mark.parametrize("factor", [1.0, 1.6])
@pytest.mark.parametrize("allocation", ["latency", "uniform"])
def test_a_plan_is_corrected_until_the_built_model_meets_the_budget(
    machine: Machine, structure: str, factor: float, allocation: str
) -> None:
    model = make_model(width=16)
    scores, groups = score_model(model, "magnitude"), groups_of(model) if structure == "filter" else None
    machine.factor = factor
    dense = machine.model_ms(model, {k: torch.ones_like(s, dtype=torch.bool) for k, s in scores.items()}, X, groups)
    machine.built = 0
    masks = allocate(
        model, scores, budget=f"latency={0.6 * dense}ms", example_input=X, structure=structure, allocation=allocation
    )
    assert machine.model_ms(model, masks, X, groups) == pytest.approx(0.6 * dense, rel=0.05)
    assert machine.built <= 7


def test_a_share_of_the_milliseconds_is_one_of_what_the_unpruned_model_takes(machine: Machine) -> None:
    model = make_model(width=16)
    scores = score_model(model, "magnitude")
    dense = machine.model_ms(model, {k: torch.ones_like(s, dtype=torch.bool) for k, s in scores.items()}, X, None)
    masks = allocate(model, scores, budget="latency=40%", example_input=X, allocation="latency")
    assert machine.model_ms(model, masks, X, None) == pytest.approx(0.4 * dense, rel=0.05)


def test_importance_per_millisecond_beats_uniform_ratios(machine: Machine) -> None:
    model = make_model(width=16)
    scores = score_model(model, "scaled")
    dense = machine.model_ms(model, {k: torch.ones_like(s, dtype=torch.bool) for k, s in scores.items()}, X, None)
    kept = [
        importance(scores, allocate(model, scores, budget=f"latency={0.4 * dense}ms", example_input=X, allocation=name))
        for name in ("latency", "uniform")
    ]
    assert kept[0] > 1.03 * kept[1]


def test_other_budgets_take_the_latency_allocation_too(machine: Machine) -> None:
    model = make_model(width=16)
    scores = score_model(model, "magnitude")
    masks = allocate(model, scores, budget="60%", example_input=X, allocation="latency")
    kept, total = (sum(f(mask) for mask in masks.values()) for f in (torch.count_nonzero, torch.numel))
    assert int(kept) == pytest.approx(0.4 * total, rel=0.01)


def test_a_floor_above_the_budget_is_named_with_what_bounds_it(machine: Machine) -> None:
    model = make_model()
    scores = score_model(model, "magnitude")
    with pytest.raises(InputError, match=r"at least .* ms, got 0\.001 ms: .* not the convolutions' .* layer '\w+'"):
        allocate(
            model, score_model(model, "magnitude"), budget="latency=0.001ms", example_input=X, allocation="latency"
        )
    with pytest.raises(InputError, match=r"below the .* ms of the dense model, got 999 ms"):
        allocate(model, scores, budget="latency=999ms", example_input=X)


def times_of(*layers: list[float], read: list[list[float]] | None = None) -> LatencyModel:
    count = len(layers)
    written = np.concatenate([np.zeros([count, 1]), np.eye(count)], axis=1)
    reads = np.array(read) if read else np.concatenate([np.ones([count, 1]), np.zeros([count, count])], axis=1)
    return LatencyModel(np.array(layers), written, reads, tuple(map(str, range(count))))


def parts(*sizes: int) -> list[Part]:
    return [Part((str(i),), ((n, 1, 1, 1),), torch.arange(1.0, n + 1) / n) for i, n in enumerate(sizes)]


def test_a_layer_that_is_not_faster_with_fewer_weights_keeps_them() -> None:
    flat, steep = [5.0] * len(SHARES), [10 * share for share in SHARES]
    flat[0] = 5.0
    found = fit(by_latency(parts(100, 100), times_of(flat, steep)), times_of(flat, steep).ms, 10.0)
    assert found is not None
    assert found[0] < 0.02
    assert found[1] == pytest.approx(0.5, abs=0.02)


def test_the_solver_finds_the_best_of_all_plans_on_a_grid() -> None:
    bent = [3.0, 3.1, 3.3, 4.0, 6.0, 8.5, 9.0]
    steep = [10 * share for share in SHARES]
    times, two = times_of(bent, steep), parts(100, 60)
    found = fit(by_latency(two, times), times.ms, 9.0)
    assert found is not None
    assert times.ms(found) <= 9.0

    def kept(ratios: Tensor) -> float:
        return sum(float(p.importance[round(float(r) * p.size) :].sum()) for p, r in zip(two, ratios, strict=True))

    grid = torch.linspace(0, 0.98, 50, dtype=torch.float64)
    best = max(kept(plan) for plan in torch.cartesian_prod(grid, grid) if times.ms(plan) <= 9.0)
    assert kept(found) >= 0.97 * best  # the others lie inside the hull
    same = fit(uniform(two), times.ms, 9.0)
    assert same is not None
    assert kept(found) > kept(same)


def test_channels_that_are_read_count_where_filters_go() -> None:
    steep = [10 * share for share in SHARES]
    coupled = times_of(steep, steep, read=[[1, 0, 0], [0, 1, 0]])
    half = torch.tensor([0.5, 0.0], dtype=torch.float64)
    assert coupled.ms(half) == pytest.approx(5 + 5)
    levels = coupled.levels_ms(np.array([1.0, 1.0, 1.0]), 0)
    assert levels[0] == pytest.approx(20)
    assert levels[50] == pytest.approx(coupled.ms(torch.tensor([50 / 101, 0.0], dtype=torch.float64)), rel=0.02)


def test_shapes_are_thinned_in_input_and_output() -> None:
    shape = ConvShape.of(nn.Conv2d(64, 32, 3, 2, padding="valid"), (9, 9))
    assert (shape.padding, shape.thinned(0.25).in_channels, shape.thinned(0.25).out_channels) == ((0, 0), 32, 16)
    depthwise = ConvShape.of(nn.Conv2d(8, 16, 3, padding=1, groups=8), (9, 9)).thinned(0.5)
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (4, 8, 4)
    assert int(ConvShape.of(nn.Conv2d(64, 32, 3), (9, 9)).layer().weight.count_nonzero()) == 64 * 32 * 9


@pytest.mark.skipif(not native_status().available, reason="the compiled extension is not there")
def test_layers_are_measured_on_the_engine_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path))
    shapes = [ConvShape.of(nn.Conv2d(4, 8, 3, padding=1), (8, 8)), ConvShape.of(nn.Conv2d(8, 8, 1), (6, 6))]
    first = LayerTimes.default().measure(shapes)
    assert min(first.values()) > 0
    assert LayerTimes.default().measure([*shapes, *shapes]) == first


GPU = GPUS["rtx-2070-super"]
CUDA_X: Any = SimpleNamespace(is_cuda=True, dtype=torch.float32, device="cuda:0")  # no GPU is needed to ask the models


def test_on_a_gpu_layers_take_what_the_choice_of_kernels_goes_by(monkeypatch: pytest.MonkeyPatch) -> None:
    device = CudaDevice(GPU, cuda_op, lambda call: 0.0, allow_tf32=False, is_capturing=False)
    monkeypatch.setattr(latency_module, "device_of", lambda x: device)
    conv = ConvShape.of(nn.Conv2d(256, 512, 3, 2, padding=1), (52, 52))
    shapes = [replace(conv, density=density) for density in (0.02, 0.1, 1.0)]
    found = latency_module._milliseconds(shapes, CUDA_X)
    problems = [ConvProblem(512, 256, (3, 3), 1, shape.density, 1, (26, 26), (2, 2), (1, 1)) for shape in shapes]
    chosen = [choose_kernel(problem, torch.float32, GPU, allow_tf32=False) for problem in problems]
    assert [found[shape] for shape in shapes] == [1e3 * choice.seconds for choice in chosen]
    assert [choice.kernel for choice in chosen] == ["record", "record", "dense"]
    assert 0 < found[shapes[0]] < found[shapes[1]] < found[shapes[2]]


def test_a_gpu_without_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_module, "device_of", lambda x: None)
    with pytest.raises(InputError, match="CUDA kernels or Triton for a latency budget on cuda:0, but "):
        latency_module._milliseconds([ConvShape.of(nn.Conv2d(4, 4, 1), (8, 8))], CUDA_X)


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["unstructured", "filter"])
def test_what_is_deployed_answers_as_the_masked_model(structure: str) -> None:
    model = make_model()
    groups = groups_of(model) if structure == "filter" else None
    scores = score_model(model, "magnitude")
    masks = allocate(model, scores, budget="50%", example_input=X, structure=structure)
    x = torch.rand(1, 3, 16, 16)
    fast = latency_module.deployed(model, masks, x, groups)
    assert deployed_ms(model, masks, x, groups) > 0
    apply_masks(model, masks, groups)
    torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-4)
