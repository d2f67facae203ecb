"""What a run with budgets does, and how a budget is spread over rounds."""

from __future__ import annotations

import pytest

from prunekit.errors import InputError
from prunekit.pipeline import make_config
from prunekit.pipeline.mrpf import budget_of_round

GOOD = {"model": "yolov3-tiny", "weights": "tiny.weights", "data": "coco", "out": "run", "train_data": "coco"}


def test_budgets_take_the_place_of_ratios() -> None:
    config = make_config(**GOOD, budget=("macs=50%", "90%"), allocation="uniform,erk", structure="filter")
    assert [unit.stem for unit in config.units if unit.variant.allocation == "erk"] == [
        "ratio_0",
        "filter-scaled-one-shot-erk-ratio_90",
        "filter-scaled-one-shot-erk-macs_50_percent",
    ]
    assert [unit.shared for unit in config.units] == ["", "", "macs=50%", "", "90.0%", "macs=50%"]
    assert [unit.label for unit in config.units][2::3] == [
        "filter, scaled, one-shot, macs=50%",
        "filter, scaled, one-shot, erk, macs=50%",
    ]


def test_uniform_ratios_are_the_run_of_always() -> None:
    config = make_config(**GOOD, ratios=(0, 50))
    assert [(unit.stem, unit.shared) for unit in config.units] == [
        ("ratio_0", ""),
        ("unstructured-scaled-one-shot-ratio_50", ""),
    ]


def test_budgets_and_allocations_may_be_added_to_a_run() -> None:
    identity = make_config(**GOOD).identity()
    assert make_config(**GOOD, budget="macs=50%", allocation="erk").identity() == identity
    measured = make_config(**GOOD, sensitivity={"images": 3})
    assert measured.sensitivity.images == 3
    assert measured.identity() != identity


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"budget": "macs=0"}, "--budget: expected a budget that leaves something, got 'macs=0'."),
        ({"allocation": "mrs", "train_data": None}, "--allocation mrs needs images to learn from: add --train-data"),
        ({"allocation": "none"}, "--allocation: must be one of uniform, global, erk, lamp, mrs, latency, got 'none'."),
        ({"allocation": "erk", "scope": "global"}, "--scope global is --allocation global"),
        ({"sensitivity": {"passes": 0}}, "sensitivity.passes: input should be greater than or equal to 1, got 0."),
    ],
)
def test_what_does_not_go_together_is_one_sentence(choices: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        make_config(**{**GOOD, **choices})
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "whole", "rounds"),
    [
        ("macs=25%", 100.0, ["macs=50.000000%", "macs=25%"]),
        ("parameters=250", 1000.0, ["parameters=500.000000", "parameters=250"]),
        ("latency=4ms", 64.0, ["latency=16.000000ms", "latency=4ms"]),
        ("latency=25%", 100.0, ["latency=50.000000%", "latency=25%"]),
        ("75%", 100.0, ["50.000000%", "75%"]),
    ],
)
def test_each_round_leaves_the_same_share_of_what_the_one_before_left(
    text: str, whole: float, rounds: list[str]
) -> None:
    assert [budget_of_round(text, number, 2, whole) for number in (1, 2)] == rounds
