"""bench/zoo.py on toys: rows, resuming, children that crash or hang, comparisons, timing, and the verdict."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.zoo import main, run_child
from bench.zoo_checks import check_input, compare, has_discontinuous_end, own_rounding
from bench.zoo_models import MODELS as REAL_MODELS
from bench.zoo_models import REGISTRY, load_registry
from bench.zoo_rows import TOOLS, Check, Latency, Row, Tool, append_row, read_rows
from bench.zoo_summary import Criteria, is_slower, judge, problems_of, table
from bench.zoo_times import measure
from bench.zoo_trial import Trial, prepare, run_trial
from bench.zoo_weights import random_images
from prunekit.errors import InputError, WrongOutputError
from prunekit.ops.native import native_status
from tests.support.toy_zoo import MODELS, SIZE

pytestmark = pytest.mark.usefixtures("one_thread")
TOYS = "tests.support.toy_zoo:MODELS"
native = pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}")


def _trial(model: str, tool: Tool = "accelerate") -> Trial:
    return Trial(model, tool, TOYS, tuning_seconds=0.1)


def _row(model: str = "a", tool: Tool = "accelerate", ratio: float = 0.5, spread: float = 0.01, **more: Any) -> Row:
    check = Check(shape=(1, 3, 8, 8), error=1e-6, tensors=1, elements=10)
    latency = Latency(median_ms=1.0, spread=0.1, ratio=ratio, ratio_spread=spread)
    facts: dict[str, Any] = {
        "engine": "whole graph",
        "example": check,
        "batch": check,
        "other_size": check,
        "input_effect": 1.0,
    }
    facts |= {"latencies": {"eager": latency, "prunekit": latency}, "is_original_unchanged": True}
    return Row(model=model, source="toys", tool=tool, size=8, threads=1, **(facts | more))


@native
@pytest.mark.parametrize("tool", TOOLS)
def test_a_trial_compares_on_three_inputs_and_times(tool: Tool) -> None:
    row = run_trial(_trial("plain", tool))
    assert row.exception_type is None
    assert [check.shape for check in row.checks.values()] == [
        (1, 3, SIZE, SIZE), (2, 3, SIZE, SIZE), (1, 3, SIZE - 27, SIZE + 13),
    ]  # fmt: skip
    assert all(check.error is not None and check.error <= 1e-5 for check in row.checks.values())
    assert [check.elements for check in row.checks.values()] == [5, 10, 5]
    assert row.latencies.keys() == {"eager", "prunekit"}
    assert row.latencies["eager"].ratio == 1
    assert row.is_original_unchanged
    assert problems_of(row) == []
    if tool == "accelerate":
        assert row.engine == "whole graph"
    else:
        assert row.parameters_before is not None
        assert row.parameters_after is not None
        assert row.parameters_after < row.parameters_before


def test_models_are_pruned_and_alive_and_the_same_every_time() -> None:
    (model, x), (again, _) = (prepare(_trial("plain"), MODELS["plain"]) for _ in range(2))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert bool((convolutions[0].weight != 0).all())
    shares = [float((conv.weight == 0).float().mean()) for conv in convolutions[1:]]
    assert all(0.8 < share < 1 for share in shares)
    norm: Any = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert len(tensor.unique()) == len(tensor)
    effect = compare(model(x), model(random_images(1, SIZE, SIZE))).relative_rms
    assert 1e-2 < effect < 100, "neither dead nor exploding"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    halved, _ = prepare(_trial("plain", "compact"), MODELS["plain"])
    for conv in (m for m in halved.modules() if isinstance(m, nn.Conv2d)):
        assert int((conv.weight.flatten(1) == 0).all(1).sum()) == len(conv.weight) // 2


def test_what_raises_is_a_row() -> None:
    row = run_trial(_trial("raise"))
    assert (row.exception_type, row.exception) == ("SetupError", "no such weights")


@pytest.mark.parametrize(
    ("model", "limit", "kind", "text"), [("crash", 120.0, "Crash", "SIGABRT"), ("hang", 1.0, "Timeout", "1 s")]
)
def test_children_that_crash_or_hang_are_rows(model: str, limit: float, kind: str, text: str) -> None:
    row = run_child(_trial(model), limit)
    assert row.exception_type == kind
    assert text in str(row.exception)


@native
def test_the_command_keeps_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    append_row(out, _row("plain", "accelerate", engine="from before"))
    with out.open("a") as file:
        file.write('{"format": "prunekit-zoo-1", "model"')  # killed in the middle of a line
    options = ["--out", str(out), "--registry", TOYS, "--models", "plain", "--tuning-seconds", "0.1"]
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert "Expected --resume or a new file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*options, "--resume"])
    assert ended.value.code == 1, "one model is not seventy"
    rows = read_rows(out)
    assert [(row.model, row.tool, row.engine) for row in rows] == [
        ("plain", "accelerate", "from before"), ("plain", "compact", None),
    ]  # fmt: skip
    assert rows[1].exception_type is None
    printed = capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--summary", str(out)])
    assert ended.value.code == 1
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "Expected either --out or --summary"),
        (["--summary", "nowhere.jsonl"], "which does not exist"),
        (["--out", "rows.jsonl", "--registry", TOYS, "--models", "plain,nobody"], "got nobody"),
        (["--out", "rows.jsonl", "--registry", "tests.support.toy_zoo"], "Expected --registry to name"),
        (["--out", "rows.jsonl", "--registry", "tests.support.toy_zoo:SIZE"], "a mapping of names to ZooModels"),
        (["--out", "rows.jsonl", "--registry", TOYS, "--limit", "0"], "Expected --limit to be positive"),
    ],
)
def test_bad_input_ends_in_a_sentence(
    options: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("absent", [{"timm"}, {"torchvision", "timm"}])
def test_missing_packages_are_named(absent: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else object())
    with pytest.raises(InputError, match=rf"got no {'.*'.join(sorted(absent, reverse=True))}.*prunekit\[zoo\]"):
        load_registry(REGISTRY)


def test_the_registry_holds_enough_models_of_both_packages() -> None:
    assert len(REAL_MODELS) >= 75
    assert {model.source for model in REAL_MODELS.values()} == {"torchvision", "timm"}


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", '{"format": "prunekit-zoo-1", "model": 3}'])
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content + "\n")
    with pytest.raises(InputError, match=r"line 1: expected a row of bench\.zoo"):
        read_rows(path)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [_row(), _row("b", "compact", exception_type="KeyError", exception="'x'")]
    for row in rows:
        append_row(tmp_path / "rows.jsonl", row)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["example"]["error"] == 1e-6


@pytest.mark.parametrize(
    ("expected", "actual", "sentence"),
    [
        ([torch.ones(2)], (torch.ones(2),), "Expected a list of 1, got a tuple of 1"),
        (torch.ones(2), torch.ones(1), r"shape \[2\], got \[1\]"),
        (torch.ones(2), torch.ones(2).double(), r"float32, got torch\.float64"),
        ({"a": torch.ones(0)}, {"a": torch.ones(0)}, "hold no number"),
        ([3, torch.ones(2)], [4, torch.ones(2)], "Expected 3, got 4"),
        ([], [], "hold no number"),
    ],
)
def test_outputs_that_differ_in_kind_or_hold_nothing_are_not_equal(
    expected: object, actual: object, sentence: str
) -> None:
    with pytest.raises(WrongOutputError, match=sentence):
        compare(expected, actual)


def test_the_largest_error_counts_wherever_it_is() -> None:
    a, b = torch.ones(4), torch.tensor([1.0, 1, 1, 1.2])
    assert compare([a, a], [a, b]).relative_rms == pytest.approx(0.1)
    found = compare({"x": a, "y": torch.ones(0)}, {"x": b, "y": torch.ones(0)})
    assert (found.tensors, found.elements) == (1, 4)
    for outputs in ([a, a * torch.nan, a], [a * torch.nan, a, a]):
        assert compare(outputs, [a, a, a]).relative_rms == math.inf


class _Refusing(nn.Module):
    def __init__(self, model: nn.Module, error: Exception) -> None:
        super().__init__()
        self.model, self.error = model, error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


def test_checks_tell_refusals_from_faults_and_from_the_models_own_limits() -> None:
    model, x = nn.Conv2d(3, 2, 3).requires_grad_(False), torch.rand(1, 3, 8, 8)
    assert check_input(model, _Refusing(model, InputError("Expected 8.")), [x], ()).refused == "Expected 8"
    assert check_input(model, _Refusing(model, KeyError("x")), [x], ()).problem == "KeyError: 'x'"
    small = torch.rand(1, 3, 1, 1)
    assert str(check_input(model, model, [small], ()).unsupported).startswith("RuntimeError: Calculated padded")
    assert check_input(model, model, [small, x], ()) == Check(shape=(1, 3, 8, 8), error=0.0, tensors=1, elements=72)
    spoiled = nn.Sequential(model, nn.Threshold(10, torch.nan))
    assert "finite" in str(check_input(model, spoiled, [x], ()).problem)


def test_where_rounding_decides_the_parts_are_compared_instead() -> None:
    model, x = prepare(_trial("twin"), MODELS["twin"])
    with torch.no_grad():
        expected = model(x)
        assert has_discontinuous_end(model, x, expected)
        assert not has_discontinuous_end(model.get_submodule("backbone"), x, model.get_submodule("backbone")(x))
        near, _ = prepare(_trial("twin"), MODELS["twin"])
        near.get_submodule("backbone.3").weight.mul_(1 + 1e-6)  # type: ignore[operator]
        check = check_input(model, near, [x], ("backbone",))
        assert check.compared == "backbone"
        assert check.error is not None
        assert 0 < check.error < 1e-5
        near.get_submodule("backbone.3").weight.mul_(1.1)  # type: ignore[operator]
        assert (check_input(model, near, [x], ("backbone",)).error or 0) > 1e-3
        assert check_input(model, nn.Sequential(near), [x], ("backbone",)).problem is not None, "it has no such part"


def test_ratios_are_of_calls_in_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_FEWEST", "_MOST"):
        monkeypatch.setattr(f"bench.zoo_times.{limit}", 3)
    calls: list[str] = []
    rounds, latencies = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, against="a")
    assert rounds == 3
    assert "".join(calls) == "abab" + "abbaab", (
        "two rounds of warm-up, then each round in the last one's opposite order"
    )
    assert latencies["a"].ratio == 1
    assert latencies["a"].ratio_spread == 0


@pytest.mark.parametrize(
    ("ratio", "spread", "expected"), [(0.9, 0.0, False), (1.01, 0.0, False), (1.05, 0.1, False), (1.05, 0.01, True)]
)
def test_slower_means_beyond_noise(ratio: float, spread: float, expected: bool) -> None:
    assert is_slower(_row(ratio=ratio, spread=spread)) == expected


BAD_ROWS = {
    "raised": _row(exception_type="KeyError", exception="'x'"),
    "wrong": _row(batch=Check(shape=(2, 3, 8, 8), error=2e-4, tensors=1, elements=1)),
    "unproven": _row(example=Check(shape=(1, 3, 8, 8), problem="nothing to compare")),
    "dead": _row(input_effect=0.0),
    "changed": _row(is_original_unchanged=False),
    "slow": _row(ratio=1.3),
    "modules": _row(engine="modules"),
    "refused": _row(exception_type="InputError", exception="Expected another."),
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_every_fault_fails_the_verdict(bad: str) -> None:
    good, criteria = [_row(), _row("c", "compact")], Criteria(models=1, whole_graph=1)
    assert judge(good, criteria).is_met
    assert not judge(good, Criteria(models=2, whole_graph=1)).is_met
    assert not judge(good, Criteria(models=1, whole_graph=2)).is_met
    assert not judge([], Criteria(0, 0)).is_met, "no rows prove nothing"
    row = BAD_ROWS[bad]
    assert judge([*good, row], criteria).is_met == (bad in ("modules", "refused"))
    assert not judge([row], criteria).is_met
    text = "\n".join([table([row]), *judge([row], criteria).lines])
    wanted = {
        "raised": "KeyError: 'x'", "wrong": "batch 2: error 0.0002", "unproven": "nothing to compare",
        "dead": "proves nothing", "changed": "the model itself was changed", "slow": "SLOWER", "modules": "1 modules",
        "refused": "Expected another.",
    }  # fmt: skip
    assert wanted[bad] in text
    assert text.splitlines()[0].count("|") == text.splitlines()[2].count("|") == 13


def test_models_that_round_badly_themselves_are_allowed_as_much_and_named() -> None:
    far = Check(shape=(1, 3, 8, 8), error=3e-4, tensors=1, elements=10)
    rough = _row(example=far, own_rounding=2e-4)
    assert problems_of(rough) == []
    lines = judge([rough, _row("b")], Criteria(models=2, whole_graph=2)).lines
    assert any("1 models that round badly themselves: a (0.0002 from float64)" in line for line in lines)
    assert any("largest error of the others 1e-06" in line for line in lines)
    for own in (None, 1e-5, 1.4e-4):
        assert problems_of(_row(example=far, own_rounding=own)) == ["example: error 0.0003"]


def test_own_rounding_is_the_distance_to_the_float64_copy() -> None:
    x, model = random_images(1, SIZE, SIZE), MODELS["plain"].build().eval()
    before = [parameter.clone() for parameter in model.parameters()]
    with torch.no_grad():
        found = own_rounding(model, x)
        noisy = own_rounding(Blunt(model), x)
    assert found is not None
    assert 0 < found < 1e-6
    assert noisy is not None
    assert noisy > 1e-3
    assert all(map(torch.equal, before, model.parameters()))
    assert own_rounding(nn.Linear(1, 3), x) is None  # which does not run on it


class Blunt(nn.Module):
    """A model that computes in half precision what it is given in single precision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y if x.dtype == torch.float64 else y.bfloat16().float()
