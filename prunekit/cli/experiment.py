"""`prunekit experiment`: many runs by a plan, and how far they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from prunekit.cli.ending import EXIT_FAILURE, Verbose, error_console, out_console, tell, tell_any, user_errors
from prunekit.console import ConsoleProgress
from prunekit.errors import InputError
from prunekit.experiments import (
    PRESETS,
    LocalPool,
    Standing,
    describe_plan,
    do_experiment,
    estimate_seconds,
    plan_jobs,
    preset,
    read_plan,
    settle_plan,
    standings,
)
from prunekit.experiments.driver import Pool
from prunekit.experiments.ray_pool import RayPool
from prunekit.experiments.work import Work
from prunekit.pipeline import RunFolder
from prunekit.report import send_to_mlflow

EXPERIMENT_EXAMPLES = """
Examples:

  prunekit experiment --preset demo --out runs/matrix --dry-run

  prunekit experiment plan.yaml --out runs/matrix --jobs 2

  prunekit experiment --preset report-small --set weights=yolov3-tiny.weights --set data=coco128
      --set train_data=coco128 --out runs/small

  prunekit experiment status runs/matrix

Run the same command again to go on with an interrupted one; finished jobs are not repeated.
"""

_EXECUTORS = ("local", "ray")


def experiment_command(
    plan: Annotated[str | None, typer.Argument(help="plan as YAML, or: status")] = None,
    folder: Annotated[Path | None, typer.Argument(help="of status: the experiment's folder")] = None,
    preset_name: Annotated[
        str | None, typer.Option("--preset", help=f"one of prunekit's own plans: {', '.join(PRESETS)}")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the experiment; an interrupted one is resumed")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="setting of all runs, name=value, in place of the plan's (repeatable)"),
    ] = None,
    executor: Annotated[str, typer.Option(help=f"where jobs are done: {', '.join(_EXECUTORS)}")] = "local",
    jobs: Annotated[int, typer.Option(min=1, help="jobs at a time on this machine; they share its threads")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the jobs, what they share, and about how long they take")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Do many runs by a plan: every combination of its factors, at every ratio, with every seed."""
    with user_errors(verbose):
        if plan == "status":
            _show_status(folder)
            return
        path = _plan_file(plan, preset_name)
        if out is None:
            raise InputError("--out: expected a value, got none.")
        if executor not in _EXECUTORS:
            raise InputError(f"--executor: expected one of {', '.join(_EXECUTORS)}, got {executor!r}.")
        root = out.absolute()
        found = settle_plan(read_plan(path, dict(map(_setting, settings or ()))), root, jobs)
        if dry_run:
            planned = plan_jobs(found, root)
            about = _duration(estimate_seconds(found, planned, jobs))
            lines = [*describe_plan(planned), f"Roughly {about}, {jobs} at a time on a machine like this one."]
            tell("\n".join(lines))
            return

        def open_pool(work: Work, threads: int) -> Pool:
            return RayPool(work, threads) if executor == "ray" else LocalPool(work, jobs)

        with ConsoleProgress(error_console) as progress:
            failures = do_experiment(found, root, open_pool, progress)
        tell(f"Rows: {out / 'rows.csv'}")
        tell_any(send_to_mlflow([RunFolder(each.job.config.out) for each in standings(root) if each.state == "done"]))
        for name, reason in failures.items():
            tell(f"{name} failed: {reason}")
    if failures:
        raise typer.Exit(EXIT_FAILURE)


def _plan_file(plan: str | None, preset_name: str | None) -> Path:
    if (plan is None) == (preset_name is None):
        raise InputError("Expected a plan or --preset, got " + ("both." if plan else "none."))
    return preset(preset_name) if preset_name is not None else Path(str(plan))


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(f"--set: expected name=value, got {text!r}.")
    try:
        return name.replace("-", "_"), yaml.safe_load(value)
    except yaml.YAMLError:
        return name.replace("-", "_"), value


def _show_status(folder: Path | None) -> None:
    if folder is None:
        raise InputError("Expected the folder of an experiment after status, got none.")
    found = standings(folder.absolute())
    table = Table(title=str(folder), title_justify="left")
    for heading in ("job", "state", ""):
        table.add_column(heading)
    for each in found:
        table.add_row(escape(each.job.name), each.state, escape(each.reason or _duration(each.seconds)))
    out_console.print(table)
    tell(_left(found))


def _left(found: list[Standing]) -> str:
    """Return how much is left, from what the finished jobs took."""
    done = [each for each in found if each.state == "done"]
    left = len(found) - len(done)
    mean = sum(each.seconds for each in done) / len(done) if done else 0.0
    about = f", about {_duration(left * mean)} one at a time" if done and left else ""
    return f"{len(done)} of {len(found)} jobs done{about}."


def _duration(seconds: float) -> str:
    """Return a duration for people; "" for none."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.0f} h"
    return "" if not seconds else f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
