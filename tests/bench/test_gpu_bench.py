"""The model of GPU times, and the measuring program on a processor: its figures there mean nothing, its code does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import gpu, gpu_model, gpu_nets
from prunekit.ops.cuda.choice import choose_kernel
from prunekit.ops.cuda.condensed.cost import MODEL as CONDENSED
from prunekit.ops.cuda.condensed.cost import CondensedProblem
from prunekit.ops.cuda.condensed.filter import pack_fragments
from prunekit.ops.cuda.devices import GPUS, gpu_of
from prunekit.ops.cuda.record.cost import MODEL, RecordProblem
from prunekit.ops.cuda.record.filter import pack_records

TURING = GPUS["rtx-2070-super"]


def test_rows_are_written_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["--device", "cpu", "--image-size", "32", "--max-shapes", "2", "--ratios", "50,95"]
    rows = gpu.main([*arguments, "--dtypes", "float32,bfloat16", "--out", str(out)])
    assert [json.loads(line) for line in out.read_text().splitlines()] == json.loads(json.dumps(rows))
    assert [(row["ratio"], row["dtype"]) for row in rows[::2]] == [
        (95, "float32"), (50, "float32"), (95, "bfloat16"), (50, "bfloat16")
    ]  # fmt: skip
    sparse = [row for row in rows if row["sparse"]]  # an output of one pixel has none on tensor cores
    kernels = {dtype: {row["kernel"] for row in sparse if row["dtype"] == dtype} for dtype in ("float32", "bfloat16")}
    assert kernels["float32"] == {"record"}
    assert kernels["bfloat16"]
    assert kernels["bfloat16"] <= {"condensed", "semi_structured"}  # whichever is faster here
    assert all(row["relative_rms"] <= (1e-5 if row["dtype"] == "float32" else 2e-2) for row in sparse)
    printed = capsys.readouterr().out
    assert "float32, 95 % zeros: convolutions" in printed
    assert "bfloat16, 50 % zeros: convolutions" in printed
    assert "8 rows of layers" in printed.splitlines()[-1]
    assert gpu.main([*arguments, "--minutes", "0", "--out", str(out)]) == []
    assert "12 of the rows did not fit the time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("net", "size", "convolutions", "macs"),
    [("yolov3", 416, 75, 32.93e9), ("resnet50", 224, 53, 4.087e9), ("vgg16", 224, 13, 15.35e9)],
)
def test_nets_have_their_convolutions_and_multiply_adds(net: str, size: int, convolutions: int, macs: float) -> None:
    layers = gpu_model.net_layers(net, size)
    assert sum(layers.values()) == convolutions
    assert sum(layer.macs * count for layer, count in layers.items()) == pytest.approx(macs, rel=0.01)


def test_a_kernel_brings_what_the_next_best_would_not() -> None:
    times = [(2, {"dense": 8.0, "bitmap": 2.0, "condensed": 4.0}), (1, {"dense": 4.0, "bitmap": 4.0})]
    assert gpu_model.taken_kernels(times) == {"bitmap": 2, "dense": 1}  # dense where they tie
    assert gpu_model.speed_up(times) == 20 / 8
    assert gpu_model.speed_up(times, "bitmap") == 20 / 12
    assert gpu_model.speed_up(times, "condensed") == 20 / 8


def test_kernels_are_those_that_the_choice_takes(capsys: pytest.CaptureFixture[str]) -> None:
    layer = gpu_model.Layer(1024, 512, 3, 1, 13)
    for dtype, device in (("float32", TURING), ("float16", TURING), ("float16", GPUS["a100"])):
        seconds = gpu_model.kernel_seconds(layer, 0.01, device, dtype)
        choice = choose_kernel(layer.problem(0.01), gpu_model.DTYPES[dtype], device, allow_tf32=False)
        assert gpu_model.taken_kernels([(1, seconds)]) == {choice.kernel: 1}
        assert min(seconds.values()) == choice.seconds
    gpu_model.print_kernels("yolov3", {layer: 7}, 1, "float16")
    printed = capsys.readouterr().out
    assert f"| {TURING.name} | 99 % | bitmap 7 |" in printed
    assert "| all kernels | without condensed | without bitmap | without semi_structured |" in printed.splitlines()[0]


def test_the_model_is_above_its_floors_and_falls_with_the_weights() -> None:
    for device in GPUS.values():
        before = float("inf")
        for density in (0.5, 0.25, 0.1, 0.05, 0.01):
            problem = RecordProblem(256, 128, (3, 3), 1, density, 1, (52, 52))
            chosen = MODEL.choose_launch(problem, device)
            assert chosen is not None
            multiply_adds = 2 * 256 * 128 * 9 * density * 52 * 52 / (device.fma_peak_gflops * 1e9)
            assert max(multiply_adds, MODEL.memory_seconds(problem, chosen[0], device)) < chosen[1] < before
            before = chosen[1]


def test_the_float16_model_is_above_its_floors_and_falls_with_the_weights() -> None:
    for device in GPUS.values():
        before = float("inf")
        for density in (0.5, 0.1, 0.01):
            problem = CondensedProblem(256, 128, (3, 3), 1, density, 1, (52, 52), padding=(1, 1))
            chosen = CONDENSED.choose_launch(problem, device)
            assert chosen is not None
            launch, seconds = chosen
            multiply_adds = 256 * 128 * 9 * problem.kept_columns * 52 * 52
            floor = 2 * multiply_adds / (device.tensor_peak_gflops * 1e9)
            assert max(floor, CONDENSED.memory_seconds(problem, launch, device)) < seconds < before
            assert CONDENSED.shared_bytes(problem, launch) <= device.shared_bytes
            before = seconds


def test_expected_steps_are_those_of_a_random_mask() -> None:
    generator = torch.Generator().manual_seed(4)
    for kernel, density, chunk in ((3, 0.1, 16), (3, 0.01, 32), (1, 0.2, 32), (5, 0.05, 8)):
        weight = torch.randn(128, 96, kernel, kernel).half()
        mask = torch.rand(weight.shape, generator=generator) < density
        problem = CondensedProblem(128, 96, (kernel, kernel), 1, density, 1, (20, 20))
        packed = pack_fragments(weight, mask, 1, chunk)
        # Permuted channels share a few taps more than random ones.
        expected = problem.num_row_groups * 96 / chunk * problem.steps(chunk)
        assert packed.header.num_steps == pytest.approx(expected, rel=0.1)
        assert packed.header.longest <= -(-chunk * kernel**2 // 16)


def test_the_best_cut_is_the_least_modeled() -> None:
    problem = RecordProblem(64, 32, (3, 3), 1, 0.1, 2, (17, 23), (2, 2))
    best = MODEL.best_launches(problem, TURING, 5)
    times = [MODEL.modeled_seconds(problem, launch, TURING) for launch in best]
    assert times == sorted(times)
    assert all(MODEL.shared_bytes(problem, launch) <= TURING.shared_bytes for launch in best)


def test_searching_all_cuts_at_once_finds_what_trying_each_finds() -> None:
    for kernel, density, name in ((3, 0.1, "rtx-2070-super"), (1, 0.02, "a100"), (5, 0.3, "h100")):
        device = GPUS[name]
        problem = RecordProblem(48, 20, (kernel, kernel), 2, density, 2, (17, 23), padding=(kernel // 2, kernel // 2))
        times = [MODEL.modeled_seconds(problem, cut, device) for cut in MODEL.launches(problem, device.shared_bytes)]
        assert MODEL.modeled_seconds(problem, MODEL.best_launches(problem, device, 1)[0], device) == min(times)
        halves = CondensedProblem.of(problem)
        cuts = list(CONDENSED.launches(halves, device.shared_bytes))
        times = [CONDENSED.modeled_seconds(halves, cut, device) for cut in cuts]
        chosen = CONDENSED.best_launches(halves, device, 3)
        assert [CONDENSED.modeled_seconds(halves, cut, device) for cut in chosen] == sorted(times)[:3]
        assert len(cuts) == len(set(cuts)) > 50


@pytest.mark.parametrize("dtype", sorted(gpu_model.DTYPES))
def test_break_even_is_where_the_faster_one_changes(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    layer = gpu_model.Layer(256, 128, 3, 1, 52)
    for device in GPUS.values():
        point = gpu_model.break_even(layer, device, dtype)
        if point is None:
            assert dtype == "float16"
            continue
        dense = gpu_model.dense_seconds(layer, device, dtype)
        assert gpu_model.modeled_layer(layer, 1 - point / 100, device, dtype)[0] <= dense
        assert gpu_model.modeled_layer(layer, 1.01 - point / 100, device, dtype)[0] > dense
    gpu_model.print_break_even({layer: 11}, dtype)
    assert "| 128 → 256, 3×3 | 52×52 | 11 | " in capsys.readouterr().out
    gpu_model.print_choices({layer: 11}, 1, dtype)
    printed = capsys.readouterr().out
    assert f"| {TURING.name}, input_grad | {dtype} | 1.00×, 0 |" in printed
    assert ("| tf32 |" in printed) == (dtype == "float32")
    assert "×, 11 |" in printed


def test_expected_records_are_those_of_a_random_mask() -> None:
    generator = torch.Generator().manual_seed(3)
    for kernel, density in ((3, 0.1), (3, 0.02), (1, 0.2), (5, 0.05)):
        weight = torch.randn(128, 96, kernel, kernel)
        problem = RecordProblem(128, 96, (kernel, kernel), 1, density, 1, (20, 20))
        packed = pack_records(
            weight, torch.rand(weight.shape, generator=generator) < density, 1, problem.window_taps, 16, 1
        )
        expected = problem.num_row_groups * 96 * (problem.slots + problem.loads) + 1.5 * packed.header.num_runs
        assert packed.header.num_records == pytest.approx(expected, rel=0.03)


def test_other_devices_are_read_from_their_properties() -> None:
    properties = SimpleNamespace(
        name="NVIDIA GeForce GTX 1660",
        major=7,
        minor=5,
        multi_processor_count=22,
        L2_cache_size=1 << 20,
        shared_memory_per_block_optin=65536,
        shared_memory_per_multiprocessor=65536,
        max_threads_per_multi_processor=1024,
        clock_rate=1_785_000,
        memory_clock_rate=4_001_000,
        memory_bus_width=192,
    )
    found = gpu_of(properties)
    assert found.fma_peak_gflops == pytest.approx(5027, rel=0.01)
    assert found.memory_gb_per_s == pytest.approx(192, rel=0.01)
    assert found.max_warps == 32
    properties.name, properties.multi_processor_count = TURING.name, 40
    assert gpu_of(properties) == TURING


def test_nets_are_measured_from_image_to_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunekit.nn.accelerate_gpu._WHOLE_MODEL_RUNS", 1)
    out = tmp_path / "nets.jsonl"
    arguments = ["--device", "cpu", "--nets", "resnet50", "--image-size", "32", "--width", "0.125"]
    arguments += ["--dtypes", "float32,bfloat16", "--ratios", "95", "--out", str(out)]
    monkeypatch.setattr(gpu_nets, "_LEAST_COMPILE_SECONDS", 1e9)
    rows = gpu_nets.main(arguments)
    assert [json.loads(line) for line in out.read_text().splitlines()] == json.loads(json.dumps(rows))
    for row, most in zip(rows[:2], (1e-4, 5e-2), strict=True):
        for one in row["accelerated"].values():
            assert one["layers"] == 54  # the linear layer is pruned too
            assert one["relative_rms"] <= most
    printed = capsys.readouterr().out
    assert "resnet50 in float32, 95 % zeros" in printed
    assert "resnet50 in bfloat16, 95 % zeros" in printed
    assert "resnet50 in bfloat16: torch.compile was left out" in printed.splitlines()[-1]
    assert [row["note"] for row in gpu_nets.main([*arguments, "--minutes", "0"])] == [
        "torch.compile was left out: 0 s were left"
    ] * 2
    assert "did not fit the time: accelerate resnet50 in float32" in capsys.readouterr().out
