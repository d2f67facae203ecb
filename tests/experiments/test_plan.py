"""Plans: which runs come of them, what these share, and which sentence a bad one ends with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunekit.errors import InputError
from prunekit.experiments import (
    PRESETS,
    LocalPool,
    Plan,
    describe_plan,
    do_experiment,
    plan_jobs,
    preset,
    read_plan,
    settle_plan,
    turns,
)
from prunekit.experiments.plan import count_trainings
from prunekit.experiments.records import keep_plan
from prunekit.progress import SilentProgress
from tests.support import ROOT
from tests.support.commands import invoke

SMALL: dict[str, Any] = {
    "rendered": {"num_train": 8, "num_val": 4, "image_size": 64, "width": 0.06, "epochs": 1},
    "settings": {"objective": "clean", "pretrain": {"epochs": 1}, "finetune": {"epochs": 1}},
    "factors": {"structure": ["unstructured", "filter"], "grayscale": [False, True]},
    "ratios": [0, 50],
    "seeds": [0, 1, 2],
}

CYCLE: dict[str, Any] = {"objective": "clean"}
CYCLE["pretrain"] = CYCLE  # which YAML can say by an anchor


def test_factors_that_a_run_goes_through_itself_stay_in_it(tmp_path: Path) -> None:
    jobs = plan_jobs(Plan(**SMALL), tmp_path)
    assert [job.name for job in jobs] == [
        f"grayscale_{gray}-seed_{seed}" for seed in range(3) for gray in (False, True)
    ]
    assert {job.config.structure for job in jobs} == {("unstructured", "filter")}
    assert {job.config.out for job in jobs} == {tmp_path / "runs" / job.name for job in jobs}
    assert [job.models for job in jobs] == [4] * 6  # as given, unpruned, both structures


def test_products_may_have_ratios_of_their_own(tmp_path: Path) -> None:
    products = [{"structure": "unstructured", "ratios": [0, 90]}, {"structure": "filter"}]
    jobs = plan_jobs(Plan(**SMALL | {"factors": products, "seeds": [0]}), tmp_path)
    assert [job.config.ratios for job in jobs] == [(0, 90), (0, 50)]
    assert "ratios" not in Plan(**SMALL | {"factors": products}).factor_names


def test_budgets_take_the_place_of_ratios_within_a_run(tmp_path: Path) -> None:
    factors = {"allocation": ["uniform", "lamp"], "budget": ["macs=50%", "macs=25%"]}
    plan = Plan(**SMALL | {"factors": factors, "ratios": []})
    jobs = plan_jobs(plan, tmp_path)
    assert [job.name for job in jobs] == ["seed_0", "seed_1", "seed_2"]
    assert [unit.budget for unit in jobs[0].config.units if unit.is_pruned] == ["macs=50%", "macs=25%"] * 2
    assert plan.factor_names == ("structure", "scores", "pruning", "allocation")
    assert count_trainings(jobs)["fine-tunings"] == 12


def test_jobs_wait_for_the_one_that_pre_trains_for_them(tmp_path: Path) -> None:
    factors = {"finetune_epochs": [1, 2], "structure": "unstructured"}
    plan = Plan(
        **SMALL | {"factors": factors, "settings": {"objective": "clean", "pretrain": {"epochs": 1}}, "seeds": [0, 1]}
    )
    jobs = plan_jobs(plan, tmp_path)
    assert [(job.name, job.after) for job in jobs] == [
        ("finetune_epochs_1-seed_0", None),
        ("finetune_epochs_1-seed_1", None),
        ("finetune_epochs_2-seed_0", "finetune_epochs_1-seed_0"),
        ("finetune_epochs_2-seed_1", "finetune_epochs_1-seed_1"),
    ]
    assert count_trainings(jobs) == {"pre-trainings": 2, "optimizations of scores": 0, "fine-tunings": 4}


def test_the_reports_plan_is_450_models_from_20_pre_trainings(tmp_path: Path) -> None:
    for name in ("weights", "val", "train"):
        (tmp_path / name).touch()
    files = {"weights": tmp_path / "weights", "data": tmp_path / "val", "train_data": tmp_path / "train"}
    jobs = plan_jobs(read_plan(preset("report"), {name: str(path) for name, path in files.items()}), tmp_path / "out")
    pruned = [unit for job in jobs for unit in job.config.units if unit.variant.structure != "none"]
    assert len(pruned) == 450
    assert count_trainings(jobs) == {"pre-trainings": 20, "optimizations of scores": 400, "fine-tunings": 400}
    assert "20 pre-trainings" in describe_plan(jobs)[-1]


@pytest.mark.parametrize("path", [*map(preset, PRESETS), *(ROOT / "bench").glob("*.yaml")], ids=lambda path: path.stem)
def test_every_plan_of_ours_is_one(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files = {key: str(tmp_path / "file") for key in ("weights", "data", "train_data")}
    plan = read_plan(path, {} if path.stem in ("demo", "robustness") else files)
    jobs = plan_jobs(plan, tmp_path / "out")
    assert len({job.name for job in jobs}) == len(jobs)
    assert {job.config.train_data is not None for job in jobs} == {True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": {"colour": [1, 2]}}, "such as structure or objective, got 'colour'"),
        ({"factors": {"structure": []}}, "different levels of structure, one or more, got none|got \\[\\]"),
        ({"factors": {"structure": ["filter", "filter"]}}, "different levels of structure"),
        ({"factors": {"structure": "rows"}}, "--structure: must be one of unstructured"),
        ({"factors": []}, "factors: "),
        ({"factors": {"seed": [1]}}, "got 'seed'"),
        ({"ratios": [0, 100]}, "--ratios: each ratio must be at least 0 and below 100 percent, got 100"),
        ({"ratios": []}, "^ratios: expected pruning ratios in percent or a budget, one of them, got neither\\.$"),
        ({"ratios": [], "factors": [{"ratios": [0]}, {"structure": "filter"}]}, "^ratios: .* got neither"),
        ({"settings": {"budget": "macs=50%"}}, "^ratios: .* got both"),
        ({"factors": {"ratios": [0], "budget": "macs=50%"}}, "^ratios: .* got both"),
        ({"ratios": [], "settings": {"budget": ["macs=100%"]}}, "budget: expected a budget below 100 %"),
        ({"seeds": [1, 1]}, "seeds: expected different seeds"),
        ({"seeds": "many"}, "seeds: "),
        ({"settings": {"grayscale": True}}, "^grayscale: expected its value at one place of .*, got it at several\\.$"),
        ({"settings": {"width": 2}}, "^width: expected its value at one place"),
        ({"settings": {"out": "there"}}, "^settings: expected those of a run alone, got out\\.$"),
        ({"settings": {"nothing": 1}}, "Expected no setting nothing, got 1"),
        ({"after": ["x"]}, "Expected no setting after"),
        ({"settings": CYCLE}, "Expected no setting pretrain.objective, got 'clean'"),
        ({"factors": CYCLE, "settings": {}}, "Expected no setting pretrain.objective, got 'clean'"),
        (
            {"rendered": None, "settings": {"model": "yolov3-tiny", "data": "gone", "weights": "lost"}},
            "there is no lost",
        ),
    ],
)
def test_bad_plans_are_one_sentence_before_anything_is_done(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path, out = tmp_path / "plan.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(SMALL | change))
    with pytest.raises(InputError, match=message):
        plan_jobs(settle_plan(read_plan(path, {}), out, 1), out)
    assert not out.exists()


def test_threads_are_shared_where_processors_cannot_be_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert settle_plan(Plan(**SMALL), tmp_path / "out", 4).settings["threads"] == 3


def test_where_jobs_cannot_take_turns_nothing_is_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(turns, "HAS_SHARED_LOCKS", False)
    plan = settle_plan(Plan(**SMALL), tmp_path / "out", 1)
    with pytest.raises(InputError, match="Expected Linux or macOS, whose file locks"):
        do_experiment(plan, tmp_path / "out", lambda work, threads: LocalPool(work, 1), SilentProgress())
    assert not (tmp_path / "out").exists()


def test_a_folder_keeps_its_plan_and_its_number_of_threads(tmp_path: Path) -> None:
    first = settle_plan(Plan(**SMALL), tmp_path / "out", 1)
    keep_plan(first, tmp_path / "out")
    assert settle_plan(Plan(**SMALL), tmp_path / "out", 64) == first
    with pytest.raises(InputError, match="holds another plan's experiment \\(its seeds differ\\)"):
        settle_plan(Plan(**SMALL | {"seeds": [0]}), tmp_path / "out", 1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="holds other files"):
        settle_plan(Plan(**SMALL), tmp_path / "other", 1)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    result = invoke("experiment", {"out": tmp_path / "out", "set": "objective=n-fgsm"}, str(path), "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "grayscale_True-seed_2: 4 models" in result.stdout
    assert (
        "6 jobs, 30 rows from 24 models: 6 pre-trainings, 0 optimizations of scores, 12 fine-tunings." in result.stdout
    )
    assert "at a time on a machine like this one" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "flags", "message"),
    [
        ({}, (), "Expected a plan or --preset, got none"),
        ({"preset": "demo"}, ("plan.yaml",), "got both"),
        ({"preset": "nothing", "out": "x"}, (), "--preset: expected one of report"),
        ({"preset": "demo"}, (), "--out: expected a value"),
        ({"preset": "demo", "out": "x", "executor": "slurm"}, (), "--executor: expected one of local, ray"),
        ({"preset": "demo", "out": "x", "set": "seed"}, (), "--set: expected name=value, got 'seed'"),
        ({"out": "x"}, ("gone.yaml",), "gone.yaml is not a file that can be read"),
        ({}, ("status",), "Expected the folder of an experiment after status"),
        ({}, ("status", "gone"), "Expected the folder of an experiment, with plan.yaml"),
    ],
)
def test_bad_command_lines_are_one_sentence(options: dict[str, str], flags: tuple[str, ...], message: str) -> None:
    result = invoke("experiment", options, *flags)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
