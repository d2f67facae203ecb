"""The demo's help and its first line give the same estimate, made of the parts that its run really has."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from prunekit import cli
from prunekit.demo import ONE_CORE, TWO_IDLE_CORES, DemoConfig, Pace, main_job


@pytest.mark.parametrize("full", [False, True])
def test_the_first_line_says_how_long_it_takes(full: bool, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")  # so that it ends before the work
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path), *(["--full"] if full else [])])
    config = (DemoConfig.full if full else DemoConfig.usual)(tmp_path)
    assert result.exit_code == 2
    assert f"This takes {config.duration}.\n" in result.stdout


def test_the_help_of_full_says_what_its_first_line_says() -> None:
    result = CliRunner().invoke(cli.app, ["demo", "--help"])
    words = " ".join(result.stdout.replace("│", " ").split())
    assert DemoConfig.full(Path()).duration in words


@pytest.mark.parametrize("config", [DemoConfig(Path("demo")), DemoConfig.full(Path("demo"))])
def test_the_estimate_counts_what_the_run_does(config: DemoConfig) -> None:
    job = main_job(config, Path("train"), Path("val"))
    models = {unit.stem for unit in job.units}
    pruned = [unit for unit in job.units if unit.ratio > 0]
    optimized = sum(unit.variant.pruning == "optimized" for unit in pruned)
    epochs = job.pretrain.epochs + optimized * job.optimize.epochs + len(pruned) * job.finetune.epochs
    assert config.minutes(Pace(clean_epoch=0, robust_epoch=0, unit=1)) == len(models)
    assert config.minutes(Pace(clean_epoch=0, robust_epoch=1, unit=0)) == epochs
    assert config.minutes(Pace(clean_epoch=1, robust_epoch=0, unit=0)) == config.epochs
    assert config.minutes(TWO_IDLE_CORES) < config.minutes(ONE_CORE)
