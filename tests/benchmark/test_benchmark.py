"""The measuring room times what is right and nothing else, and its rows say what they claim to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunekit.benchmark import Row, Settings, measure, read_rows, run_bench
from prunekit.benchmark.competition import seconds_in_turn
from prunekit.benchmark.engines.calls import Call
from prunekit.benchmark.engines.pytorch import torch_eager
from prunekit.benchmark.memory import Memory, measure_memory
from prunekit.benchmark.peers import PEERS, Peer
from prunekit.benchmark.problems import NETS, layer_problems, prune_by_magnitude, pruned_net, random_image
from prunekit.benchmark.summary import curves
from prunekit.errors import InputError
from prunekit.pipeline import SilentProgress
from prunekit.prune import prunable_layers, sparsity
from prunekit.prune.costs import count_costs
from tests.support.planted_peers import Messages, Planted, flipped_last, plant

pytestmark = pytest.mark.usefixtures("known_peak")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda y: y * 1.001, "relative RMS"),
        (flipped_last, "relative RMS"),
        (lambda y: y[:, :-1], "shapes"),
        (lambda y: y.no_such_attribute, "does not run"),
    ],
)
def test_a_wrong_peer_is_named_and_never_timed(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, change: Callable[[Tensor], Tensor], why: str
) -> None:
    peer, messages = Planted(change), Messages()
    rows = run_bench(plant(monkeypatch, settings, peer), None, messages)
    assert peer.calls == 1
    assert "planted engine" not in {row.competitor for row in rows} | {row.against for row in rows}
    assert all(why in row.not_timed["planted engine"] for row in rows)
    assert any(text.startswith("planted engine: not timed") and why in text for text in messages.texts)


def test_a_right_peer_is_timed(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    rows = run_bench(plant(monkeypatch, settings, Planted(lambda y: y * (1 + 1e-6))), None, SilentProgress())
    assert "planted engine" in {row.competitor for row in rows}


def test_a_peer_that_turns_wrong_while_timed_is_dropped(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    rows = run_bench(plant(monkeypatch, settings, Planted(torch.zeros_like, since=3)), None, SilentProgress())
    assert "planted engine" not in {row.competitor for row in rows}
    assert "relative RMS" in rows[0].not_timed["planted engine"]


def test_a_missing_peer_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    absent = Peer("absent engine", ("no_module_has_this_name",), torch_eager)
    monkeypatch.setitem(PEERS, "absent", absent)
    messages = Messages()
    rows = run_bench(Settings(**{**vars(settings), "peers": ("absent",)}), None, messages)
    assert "pip install 'prunekit[peers]'" in rows[0].not_timed["absent engine"]
    assert any("absent engine" in text for text in messages.texts)
    messages = Messages()
    run_bench(Settings(**{**vars(settings), "peers": ("absent",), "question": "layers"}), None, messages)
    assert sum("absent engine" in text for text in messages.texts) == 1  # not once a layer


def test_without_eager_there_is_nothing_to_compare_with(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setitem(PEERS, "eager", Peer("torch eager", (), Planted(torch.zeros_like)))
    with pytest.raises(RuntimeError, match="nothing to compare with"):
        run_bench(settings, None, SilentProgress())


def test_rows_parse_back_and_their_figures_agree(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = run_bench(settings, file, SilentProgress())
    assert read_rows(file) == rows
    assert [row.label for row in rows] == [
        "torch eager",
        "torch eager, folded",
        "prunekit, 0 %",
        "torch eager, pruned, 90 %",
        "prunekit, 90 %",
    ]
    assert len({row.run for row in rows}) == 1
    fastest = min(row.median_ms for row in rows if row.kind == "peer")
    for row in rows:
        assert 0 < row.median_ms <= row.p90_ms <= row.p99_ms
        assert row.speedup == pytest.approx(fastest / row.median_ms)
        assert row.eager_ms == pytest.approx(rows[0].median_ms)
        assert row.gflops == pytest.approx(2 * row.kept_macs / row.median_ms / 1e6)
        assert row.percent_of_peak == pytest.approx(row.gflops / 64 * 100)
        assert row.bound_ms == pytest.approx(max(2 * row.kept_macs / 64e6, row.weight_bytes / 16e6))
        assert row.density == pytest.approx(1 - row.ratio / 100, abs=0.02)
    assert sum(rows[-1].choices.values()) == 13


@torch.no_grad()
def test_work_and_weights_are_those_that_are_not_zero(settings: Settings) -> None:
    net = pruned_net("yolov3-tiny", 90, 0.05)
    macs = 0

    def count(conv: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        nonlocal macs
        assert isinstance(conv, nn.Conv2d)
        macs += int(conv.weight.count_nonzero()) * y.shape[2] * y.shape[3]

    for conv in prunable_layers(net).values():
        conv.register_forward_hook(count)
    net(random_image(32))
    nnz = sum(int(conv.weight.count_nonzero()) for conv in prunable_layers(net).values())
    numel = sum(conv.weight.numel() for conv in prunable_layers(net).values())
    rows = {row.label: row for row in run_bench(settings, None, SilentProgress())}
    pruned, control = rows["prunekit, 90 %"], rows["torch eager, pruned, 90 %"]
    assert (pruned.kept_macs, pruned.weight_bytes) == (macs, 6 * nnz)
    assert (control.kept_macs, control.weight_bytes) == (macs, 4 * numel)
    assert rows["torch eager"].kept_macs > 5 * macs
    assert rows["torch eager"].weight_bytes == 4 * numel


def test_what_was_measured_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = run_bench(settings, file, SilentProgress())
    content = file.read_bytes()
    measured: list[str] = []

    def note(group: measure.Group, progress: object) -> list[Row]:
        measured.append(group.title)
        return []

    monkeypatch.setattr(measure, "measure_group", note)
    messages = Messages()
    assert run_bench(settings, file, messages) == rows
    assert run_bench(Settings(**{**vars(settings), "ratios": (90.0,)}), file, messages) == rows
    assert measured == []
    assert file.read_bytes() == content
    assert all("not again" in text or "not quiet" in text for text in messages.texts)
    changes: list[dict[str, object]] = [
        {"ratios": (0.0, 50.0, 90.0)},
        {"runs": 6},
        {"threads": (2,)},
        {"image_size": 64},
        {"peers": ("folded", "compile")},
        {"memory": True},
    ]
    for change in changes:
        run_bench(Settings(**{**vars(settings), **change}), file, SilentProgress())
    assert len(measured) == len(changes)


def test_a_rebuilt_kernel_is_measured_anew(monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    first = run_bench(settings, file, SilentProgress())
    monkeypatch.setattr("prunekit.benchmark.machine._digest_of_kernels", lambda: "0" * 12)
    second = run_bench(settings, file, SilentProgress())
    assert first[0].run != second[0].run
    assert read_rows(file) == [*first, *second]


def test_groups_that_ended_before_a_failure_are_kept(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    real = measure.measure_group

    def fail_at_two(group: measure.Group, progress: SilentProgress) -> list[Row]:
        if group.threads == 2:
            raise KeyboardInterrupt
        return real(group, progress)

    monkeypatch.setattr(measure, "measure_group", fail_at_two)
    with pytest.raises(KeyboardInterrupt):
        run_bench(Settings(**{**vars(settings), "threads": (1, 2)}), file, SilentProgress())
    assert {row.threads for row in read_rows(file)} == {1}


def test_layers_are_timed_one_by_one_and_summed_by_count(settings: Settings) -> None:
    rows = run_bench(Settings(**{**vars(settings), "question": "layers", "peers": ("eager",)}), None, SilentProgress())
    layers = {row.layer: row.count for row in rows}
    assert sum(layers.values()) == 13
    (curve,) = curves(rows)
    assert [point.ratio for point in curve.points] == [0, 90]
    pruned = [row for row in rows if row.label == "prunekit, 90 %"]
    assert curve.points[1].ms == pytest.approx(sum(row.count * row.median_ms for row in pruned))
    eager = [row for row in rows if row.label == "torch eager"]
    assert curve.points[1].dense_ms == pytest.approx(sum(row.count * row.median_ms for row in eager))


def test_a_restless_machine_is_told_of(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    rows = run_bench(settings, None, SilentProgress())
    for spread, told in ((0.01, 0), (0.5, 1)):
        changed = [row.model_copy(update={"spread": spread}) for row in rows]
        monkeypatch.setattr(measure, "measure_group", lambda group, progress, changed=changed: changed)
        messages = Messages()
        assert run_bench(settings, None, messages) == changed
        assert sum("not quiet" in text for text in messages.texts) == told


def test_curves_are_of_the_last_run(settings: Settings) -> None:
    rows = run_bench(settings, None, SilentProgress())
    again = [row.model_copy(update={"run": "later", "speedup": 7.0}) for row in rows]
    (curve,) = curves([*rows, *again])
    assert [point.speedup for point in curve.points] == pytest.approx([7.0, 7.0])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("not json", "not JSON"),
        ("[1, 2]", "another thing"),
        (json.dumps({"environment": {}, "threads": 1}), "another thing"),
        (json.dumps({"format": "prunekit-bench-1", "run": "x"}), "wrong date"),
    ],
)
def test_a_line_that_is_no_row_is_bad_input(tmp_path: Path, line: str, found: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 1: .*{found}"):
        read_rows(file)


def test_each_call_is_timed_as_often_as_asked_for_after_calls_that_are_not() -> None:
    order: list[str] = []

    def call(name: str) -> Call:
        def run() -> tuple[Tensor, ...]:
            order.append(name)
            return ()

        return run

    seconds = seconds_in_turn({"a": call("a"), "b": call("b"), "c": call("c")}, 5, SilentProgress())
    assert {name: len(values) for name, values in seconds.items()} == {"a": 6, "b": 6, "c": 6}
    turns = order[6:]  # two warm-up calls of each come first
    assert all(turns[i] == turns[i + 1] == turns[i + 2] for i in range(0, len(turns), 3))
    rounds = [tuple(turns[i : i + 9 : 3]) for i in range(0, len(turns), 9)]
    assert [sorted(names) for names in rounds] == [["a", "b", "c"]] * 3
    assert len(set(rounds)) > 1


def test_pruning_keeps_the_size_of_activations() -> None:
    dense, pruned = pruned_net("yolov3-tiny", 0, 0.25), pruned_net("yolov3-tiny", 99, 0.25)
    assert sparsity(pruned) == pytest.approx(0.99, abs=0.005)
    for name, conv in prunable_layers(pruned).items():
        weight = dense.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        assert float(conv.weight.norm()) == pytest.approx(float(weight.norm()), rel=1e-4)
    with torch.no_grad():
        assert all(y.std() > 0.1 for y in pruned(random_image(64)))


@pytest.mark.parametrize("net", ["yolov3-tiny", "vgg16"])
def test_a_structure_prunes_whole_blocks(net: str) -> None:
    pruned = pruned_net(net, 75, 0.1, structure="block1x4")
    layers = [layer for layer in pruned.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert sparsity(pruned) == pytest.approx(0.75, abs=0.01)
    for weight in (layer.weight for layer in layers if layer.weight.shape[1] % 4 == 0):
        blocks = weight.reshape(weight.shape[0], -1, 4, *weight.shape[2:]).bool()
        assert torch.equal(blocks.all(2), blocks.any(2))


def test_structures_are_measurements_of_their_own(settings: Settings, tmp_path: Path) -> None:
    out, in_blocks = tmp_path / "rows.jsonl", Settings(**{**vars(settings), "structure": "block1x4"})
    first = run_bench(settings, out, Messages())
    second = run_bench(in_blocks, out, Messages())
    assert {row.structure for row in first} == {"unstructured"}
    assert {row.structure for row in second} == {"block1x4"}
    names = [curve.name for curve in curves(read_rows(out))]
    assert len(names) == 2
    assert ", block1x4, " in names[1]
    again = Messages()
    assert run_bench(in_blocks, out, again) == second
    assert any("not again" in text for text in again.texts)


def test_building_a_layer_leaves_the_problem_alone() -> None:
    problem = layer_problems("yolov3-tiny", 32, 0.25)[3]
    before = problem.build(0.0)[0].weight  # type: ignore[index]
    assert sparsity(problem.build(90.0)) == pytest.approx(0.9, abs=0.01)
    assert torch.equal(problem.build(0.0)[0].weight, before)  # type: ignore[index]
    assert sparsity(prune_by_magnitude(problem.build(0.0), 50.0)) == pytest.approx(0.5, abs=0.01)


# Parameters and multiply-accumulates at 224×224, as published with torchvision's weights (4.09 and 15.47 GMACs).
@pytest.mark.parametrize(
    ("name", "parameters", "macs"), [("resnet50", 25_557_032, 4_089_184_256), ("vgg16", 138_357_544, 15_470_264_320)]
)
def test_classifiers_have_the_published_shapes(name: str, parameters: int, macs: int) -> None:
    with torch.device("meta"):
        net = NETS[name].build()
        assert count_costs(net, torch.empty(1, 3, 224, 224)).macs == macs
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


def test_memory_is_that_of_a_process_with_the_model_in_it() -> None:
    width = 0.35
    weights_mib = sum(p.numel() for p in NETS["vgg16"].build(width=width).parameters()) * 4 / 2**20
    memory = measure_memory("vgg16", "eager", 0.0, 32, width, 1)
    assert memory.serving_mib is None or memory.serving_mib >= memory.imports_mib + 0.9 * weights_mib
    assert memory.peak_mib >= memory.imports_mib + 0.9 * weights_mib
    assert weights_mib > 50


def test_memory_of_what_does_not_run_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"memory of eager .*'no-net'"):
        measure_memory("no-net", "eager", 0.0, 32, 1.0, 1)


def test_memory_is_in_the_rows_and_its_failure_does_not_cost_the_timing(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    def measured(model: str, key: str, ratio: float, *rest: float) -> Memory:
        if key == "folded":
            raise RuntimeError("out of memory")
        return Memory(100.0, None if key == "control" else 100.0 + ratio, 200.0)

    monkeypatch.setattr(measure, "measure_memory", measured)
    messages = Messages()
    rows = run_bench(Settings(**{**vars(settings), "memory": True}), None, messages)
    assert [row.serving_mib for row in rows] == [100.0, None, 100.0, None, 190.0]
    assert [row.peak_mib for row in rows] == [200.0, None, 200.0, 200.0, 200.0]
    assert any("out of memory" in text for text in messages.texts)
