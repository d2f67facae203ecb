"""Peers in less than float32: their difference is stated, and outputs that are no approximation are never timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunekit.benchmark import Settings, measure, read_rows, run_bench
from prunekit.benchmark.competition import Competitor, error_of
from prunekit.benchmark.engines.calls import Call, UnavailableError
from prunekit.benchmark.engines.precisions import Precision
from prunekit.benchmark.peers import PEERS, Peer
from prunekit.benchmark.summary import curves
from prunekit.progress import SilentProgress
from tests.support.planted_peers import Messages, Planted, flipped_last, plant

pytestmark = pytest.mark.usefixtures("known_peak")


@pytest.mark.parametrize(("precision", "width"), [("int8", 1), ("bfloat16", 2)])
def test_a_lower_precision_is_timed_with_its_difference(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, precision: Precision, width: int
) -> None:
    rows = run_bench(plant(monkeypatch, settings, Planted(lambda y: y * 1.01), precision), None, SilentProgress())
    found = {row.label: row for row in rows}
    planted, eager = found["planted engine"], found["torch eager"]
    assert (planted.precision, eager.precision, found["prunekit, 90 %"].precision) == (precision, "float32", "float32")
    assert planted.relative_rms == pytest.approx(0.01, rel=1e-3)
    assert planted.weight_bytes * 4 == eager.weight_bytes * width


def test_speedups_are_over_the_fastest_float32_peer_and_the_fastest_of_all(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    seconds = {"torch eager": 0.004, "torch eager, folded": 0.002, "planted engine": 0.001}

    def timed(calls: dict[str, Call], runs: int, progress: object) -> dict[str, list[float]]:
        return {label: [seconds.get(label, 0.0005)] * runs for label in calls}

    monkeypatch.setattr(measure, "seconds_in_turn", timed)
    rows = run_bench(plant(monkeypatch, settings, Planted(lambda y: y * 1.01), "int8"), None, SilentProgress())
    assert {(row.against, row.fastest_any) for row in rows} == {("torch eager, folded", "planted engine")}
    pruned = next(row for row in rows if row.label == "prunekit, 90 %")
    assert (pruned.speedup, pruned.speedup_over_any) == pytest.approx((4.0, 2.0))
    assert (pruned.fastest_dense_ms, pruned.fastest_any_ms) == pytest.approx((2.0, 1.0))
    (curve,) = curves(rows)
    assert [point.speedup_over_any for point in curve.points] == pytest.approx([2.0, 2.0])
    assert [(peer.name, peer.precision) for peer in curve.lower] == [("planted engine", "int8")]
    assert curve.lower[0].speedup == pytest.approx(2.0)


def test_rows_of_earlier_versions_are_read_as_float32(settings: Settings, tmp_path: Path) -> None:
    rows = run_bench(settings, None, SilentProgress())
    file, new = tmp_path / "rows.jsonl", {"precision", "against_any", "speedup_over_any"}
    file.write_text("".join(row.model_dump_json(exclude=new) + "\n" for row in rows))
    old = read_rows(file)
    assert {(row.precision, row.fastest_any) for row in old} == {("float32", old[0].against)}
    assert [row.fastest_any_ms for row in old] == pytest.approx([row.fastest_dense_ms for row in rows])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (torch.zeros_like, "differ by 1 relative RMS, expected less than 1"),
        (lambda y: -y, "differ by 2 relative RMS, expected less than 1"),
        (flipped_last, "differ by inf relative RMS, expected less than 1"),
        (lambda y: y[:, :-1], "shapes"),
        (lambda y: y.no_such_attribute, "does not run"),
        (lambda y: y * (1 + 1e-6), "float32's rounding: it does not compute in int8"),
    ],
)
def test_a_lower_precision_is_no_excuse_for_wrong_outputs(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, change: Callable[[Tensor], Tensor], why: str
) -> None:
    peer = Planted(change)
    rows = run_bench(plant(monkeypatch, settings, peer, "int8"), None, SilentProgress())
    assert peer.calls == 1
    assert "planted engine" not in {row.competitor for row in rows} | {row.fastest_any for row in rows}
    assert why in rows[0].not_timed["planted engine"]
    assert "\n" not in rows[0].not_timed["planted engine"]


@pytest.mark.parametrize("expected", [(), (torch.empty(1, 0, 4, 4),), (torch.full((1, 2), float("nan")),)])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_comparison_of_nothing_is_none(expected: Sequence[Tensor], precision: Precision) -> None:
    outputs = tuple(expected)
    competitor = Competitor("an engine", "peer", 0.0, lambda: outputs, outputs, 1.0, 1, 1, precision)
    assert error_of(competitor) == "its outputs cannot be checked: no finite number is expected"


def test_what_an_engine_says_of_itself_is_the_reason_word_for_word(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    def build(model: nn.Module, x: Tensor) -> Call:
        raise UnavailableError("this processor has no such instructions")

    messages = Messages()
    rows = run_bench(plant(monkeypatch, settings, build, "bfloat16"), None, messages)
    assert rows[0].not_timed == {"planted engine": "this processor has no such instructions"}
    assert "planted engine: not timed, this processor has no such instructions" in messages.texts


def test_a_peer_that_takes_long_is_announced_for_whole_nets(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setitem(PEERS, "slow", Peer("slow engine", (), Planted(lambda y: y * 1.01), "int8", "quantizing"))
    asked = Settings(**{**vars(settings), "peers": ("slow",), "ratios": (90.0,)})
    for question, told in (("end-to-end", 1), ("layers", 0)):
        messages = Messages()
        run_bench(Settings(**{**vars(asked), "question": question}), None, messages)
        assert messages.texts.count("slow engine: quantizing") == told


def test_prunekit_takes_part_in_int8_where_a_peer_does(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    planted = plant(monkeypatch, settings, Planted(lambda y: y * 1.01), "int8")
    assert planted.has_int8
    assert not settings.has_int8
    rows = run_bench(planted, None, SilentProgress())
    found = {row.label: row for row in rows} | dict.fromkeys(rows[0].not_timed)
    label = "prunekit, int8, 90 %"
    assert label in found  # where it was slower than float32 on this machine, with that as the reason
    if (int8 := found[label]) is not None:
        assert (int8.kind, int8.precision) == ("prunekit", "int8")
        assert 1e-5 < int8.relative_rms < 0.5
        assert int8.weight_bytes < found["prunekit, 90 %"].weight_bytes  # type: ignore[union-attr]
    else:
        assert "float32" in rows[0].not_timed[label]
