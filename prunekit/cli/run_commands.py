"""`prunekit run`, `prunekit demo` and `prunekit doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit import doctor as doctor_report
from prunekit.cli.ending import EXIT_FAILURE, Verbose, error_console, out_console, tell, tell_any, user_errors
from prunekit.cli.options import takes
from prunekit.console import ConsoleProgress, compacted_table, results_table
from prunekit.demo import DemoConfig, next_steps, run_demo
from prunekit.errors import InputError
from prunekit.files import check_writable_folder
from prunekit.pipeline import RunConfig, RunFolder, make_config, read_rows, run
from prunekit.report import send_to_mlflow, write_report, write_run_comparison

RUN_EXAMPLES = """
Examples:

  prunekit run --model yolov3-tiny --weights yolov3-tiny.weights --data coco128/ --out runs/first

  prunekit run --model yolov3 --weights yolov3.weights --data coco/ --limit 500 --ratios 0,90 --out runs/quick

  prunekit run --model yolov3-tiny --weights yolov3-tiny.weights --data val/ --train-data train/ --pretrain-epochs 5
      --structure unstructured,filter --scores scaled,deeplift --pruning one-shot,optimized --out runs/robust

  prunekit run --weights runs/robust/model.safetensors --model yolov3-tiny --data val/ --train-data train/
      --ratios 0,90 --conditions corruptions,patch,latency --corruption-cells benchmark:3 --precision float32,int8
      --out runs/in-use

Run the same command again to resume an interrupted run.
"""


@takes(RunConfig)
def run_command(choices: dict[str, Any], verbose: bool) -> None:
    """Prune a model at each ratio, evaluate it clean and attacked, accelerate and time it, and write a report."""
    with user_errors(verbose):
        config = make_config(**choices)
        with ConsoleProgress(error_console) as progress:
            folder = run(config, progress)
            report = write_report(folder)
        rows = read_rows(folder.results)
        out_console.print(results_table(rows, folder.task().figures))
        if (compacted := compacted_table(rows)) is not None:
            out_console.print(compacted)
        tell(f"Report: {report}\nTable:  {folder.results}")
        tell_any(send_to_mlflow([folder]))


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="run folders, such as runs/matrix/runs/*")],
    out: Annotated[
        Path | None, typer.Option(help="folder for the comparison of several runs (default: that of the first run's)")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write report.html, with its plots, of finished or interrupted runs; an experiment's runs have none yet.

    Of several runs also write comparison.html: what differs, and their models at equal structure and ratio.
    """
    with user_errors(verbose):
        if out is not None:
            check_writable_folder(out, "--out")
        folders = [RunFolder(root) for root in runs]
        for folder in folders:
            tell(f"Report: {write_report(folder)}")
        if len(folders) > 1:
            tell(f"Comparison: {write_run_comparison(folders, out or runs[0].absolute().parent)}")
        tell_any(send_to_mlflow(folders))


def demo_command(
    out: Annotated[Path, typer.Option(help="folder for data, weights and the run")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="random seed of data and training")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="fewer images and variants: " + DemoConfig.quick(Path()).duration)
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="a smaller detector, trained first; scaled and DeepLIFT scores, one-shot and optimized, at nine "
            "ratios: " + DemoConfig.full(Path()).duration,
        ),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Render a small data set and run the whole pipeline on it, offline, with a detector that is shipped for this.

    Without --quick or --full this takes some minutes on two idle cores; an estimate is printed first.
    """
    with user_errors(verbose):
        if quick and full:
            raise InputError("Expected --quick or --full, got both.")
        config = (DemoConfig.quick if quick else DemoConfig.full if full else DemoConfig.usual)(out, seed)
        tell(f"This takes {config.duration}.")
        with ConsoleProgress(error_console) as progress:
            folder = run_demo(config, progress)
        out_console.print(results_table(read_rows(folder.results), folder.task().figures))
        tell(next_steps(folder))


def doctor_command() -> None:
    """Show what was built, what it runs on, what is missing, and how to install it."""
    checks = doctor_report.examine()
    out_console.print(doctor_report.table(checks))
    raise typer.Exit(EXIT_FAILURE if any(check.is_broken for check in checks) else 0)
