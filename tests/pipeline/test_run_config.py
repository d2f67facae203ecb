"""Configurations refuse what makes no sense, each in one sentence that names the option."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prunekit.errors import InputError
from prunekit.pipeline import RunConfig, make_config, parse_ratios
from prunekit.pipeline.variants import Unit, Variant

GOOD = {"model": "yolov3-tiny", "weights": "w", "data": "d", "out": "o"}


def test_ratios_are_sorted_and_each_kept_once() -> None:
    assert make_config(**GOOD, ratios=parse_ratios("50, 0,50,12.5")).ratios == (0, 12.5, 50)


@pytest.mark.parametrize(
    ("ratio", "name"),
    [(0, "ratio_0"), (90.0, "filter-deeplift-optimized-ratio_90"), (12.5, "filter-deeplift-optimized-ratio_12.5")],
)
def test_files_are_named_by_variant_and_ratio_and_the_unpruned_model_is_shared(ratio: float, name: str) -> None:
    assert Unit(Variant("filter", "deeplift", "optimized"), ratio).stem == name


def test_variants_are_every_structure_by_every_score_by_every_pruning() -> None:
    config = make_config(**GOOD, structure="unstructured, filter", scores="scaled,magnitude", ratios=(0, 50))
    assert [variant.name for variant in config.variants] == [
        "unstructured, scaled, one-shot",
        "unstructured, magnitude, one-shot",
        "filter, scaled, one-shot",
        "filter, magnitude, one-shot",
    ]
    assert len(config.units) == 8


def test_a_structure_can_have_ratios_of_its_own() -> None:
    names = "unstructured,block1x4,filter"
    config = make_config(**GOOD, structure=names, ratios=(0, 75, 90), ratios_of=("block1x4=75", "filter=50, 25"))
    ratios: dict[str, list[float]] = {}
    for unit in config.units:
        ratios.setdefault(unit.variant.structure, []).append(unit.ratio)
    assert ratios == {"unstructured": [0, 75, 90], "block1x4": [0, 75], "filter": [0, 25, 50]}
    without = make_config(**GOOD, structure="filter", ratios=(90,), ratios_of=("filter=50",))
    assert [unit.ratio for unit in without.units] == [50]
    assert config.identity() == make_config(**GOOD).identity()  # units of the same folder


@pytest.mark.parametrize("text", ["", "a", "10,", "10;20", "50%"])
def test_ratios_that_are_no_numbers_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--ratios: .*separated by commas"):
        parse_ratios(text)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"ratios": (0, 100)}, "--ratios: .*below 100 percent, got 100"),
        ({"ratios": (-1,)}, "--ratios: .*at least 0.*got -1"),
        ({"ratios": (float("nan"),)}, "--ratios: .*got nan"),
        ({"ratios": ()}, "--ratios: "),
        ({"ratios_of": ("filter",)}, "--ratios-of: expected a structure and its ratios, .*got 'filter'"),
        ({"ratios_of": ("filters=50",)}, "--ratios-of: expected a structure and its ratios, .*got 'filters=50'"),
        ({"ratios_of": ("unstructured=x",)}, "--ratios-of: expected numbers separated by commas, .*got 'x'"),
        ({"ratios_of": ("unstructured=100",)}, "--ratios-of: .*below 100 percent, got 100"),
        ({"ratios_of": ("filter=50",)}, "--ratios-of is about filter, which is not pruned: add it to --structure"),
        ({"ratios_of": ("unstructured=5",), "budget": "90%"}, "--ratios-of has no meaning beside --budget"),
        ({"latency_threads": 0}, "--latency-threads: "),
        ({"model": "yolov9"}, "--model: must be one of yolov3, .*'yolov9'"),
        ({"scores": "l1"}, "--scores: must be one of scaled, .*'l1'"),
        ({"attack": "brute"}, "--attack: must be one of fgsm, paper, .*none, got 'brute'"),
        ({"structure": "filters"}, "--structure: must be one of unstructured, .*got 'filters'"),
        ({"pruning": "one-shot,twice"}, "--pruning: must be one of one-shot, optimized, got 'twice'"),
        ({"scores": "deeplift"}, "--scores deeplift needs images to learn from: add --train-data"),
        ({"pruning": "optimized"}, "--pruning optimized needs images to learn from: add --train-data"),
        ({"share_scores_at": 90}, "--share-scores-at is about optimized scores: add --pruning optimized"),
        ({"share_scores_at": 100}, "--share-scores-at: .*less than 100, got 100"),
        ({"permute_channels_at": 75}, "--permute-channels-at is about blocks: add --structure block1x4 or block4x1 or"),
        ({"permute_channels_at": 100, "structure": "block1x4"}, "--permute-channels-at: .*less than 100, got 100"),
        ({"objective": "madry"}, "--objective: must be one of clean, pgd-at, .*'madry'"),
        ({"train_attack": "cw"}, "--train-attack: must be one of fgsm, paper, .*'cw'"),
        ({"image_size": 100}, "--image-size: .*multiple of 32, got 100"),
        ({"width": 0}, "--width: .*greater than 0, got 0"),
        ({"limit": 0}, "--limit: .*got 0"),
        ({"score_threshold": 1.0}, "--score-threshold: .*got 1.0"),
    ],
)
def test_choices_that_make_no_sense_are_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_config(**(GOOD | choice))
    assert "\n" not in str(caught.value)


def test_a_configuration_survives_json() -> None:
    config = make_config(**GOOD, ratios=(0, 12.5), limit=3)
    assert RunConfig(**json.loads(config.model_dump_json())) == config


def test_identity_ignores_where_files_lie_and_which_ratios_are_asked() -> None:
    config = make_config(**GOOD)
    moved = make_config(**{**GOOD, "weights": "a", "data": "b", "out": "c"}, ratios=(5,))
    assert moved.identity() == config.identity()
    assert make_config(**GOOD, seed=1).identity() != config.identity()


def test_every_choice_says_what_it_is() -> None:
    assert all(field.description for field in RunConfig.model_fields.values())
