"""The command line: `prunekit run`, `prunekit demo`, `prunekit doctor`."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from prunekit import doctor as doctor_report
from prunekit.console import ConsoleProgress, results_table
from prunekit.demo import DemoConfig, next_steps, run_demo
from prunekit.errors import InputError
from prunekit.pipeline import RunConfig, make_config, parse_ratios, read_rows, run
from prunekit.pipeline.environment import installed_version
from prunekit.report import write_report

EXIT_FAILURE, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

RUN_EXAMPLES = """
Examples:

  prunekit run --model yolov3-tiny --weights yolov3-tiny.weights --data coco128/ --out runs/first

  prunekit run --model yolov3 --weights yolov3.weights --data coco/ --limit 500 --ratios 0,90 --out runs/quick

  prunekit run --model yolov3-tiny --weights yolov3-tiny.weights --data val/ --train-data train/ --pretrain-epochs 5
      --structure unstructured,filter --scores scaled,deeplift --pruning one-shot,optimised --out runs/robust

A run that was interrupted goes on when the same command is given again.
"""

app = typer.Typer(
    help="Prune a detector, attack it, make it fast, and measure all three.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out_console = Console()
error_console = Console(stderr=True)

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks of errors.")]


def _option(field: str, *names: str) -> Any:
    """Return the command line's option for a field of RunConfig, described as there."""
    return typer.Option(*names, help=RunConfig.model_fields[field].description)


def _training(field: str, *names: str) -> Any:
    """Return the option for a field that only matters with --train-data."""
    return typer.Option(*names, help=RunConfig.model_fields[field].description, rich_help_panel="Training")


def _joined(field: str) -> str:
    """Return a default of several values as the command line takes it."""
    return ",".join(f"{value:g}" if isinstance(value, float | int) else value for value in _default(field))


def _default(field: str) -> Any:
    return RunConfig.model_fields[field].default


@app.command("run", epilog=RUN_EXAMPLES)
def run_command(
    model: Annotated[str, _option("model")],
    weights: Annotated[Path, _option("weights")],
    data: Annotated[Path, _option("data")],
    out: Annotated[Path, _option("out")],
    ratios: Annotated[str, _option("ratios")] = _joined("ratios"),
    scores: Annotated[str, _option("scores")] = _joined("scores"),
    structure: Annotated[str, _option("structure")] = _joined("structure"),
    pruning: Annotated[str, _option("pruning")] = _joined("pruning"),
    scope: Annotated[str, _option("scope")] = _default("scope"),
    keep_stem_and_heads: Annotated[bool, _option("keep_stem_and_heads", "--keep-stem-and-heads")] = False,
    attack: Annotated[str, _option("attack")] = _default("attack"),
    transfer: Annotated[bool, _option("transfer", "--transfer")] = _default("transfer"),
    width: Annotated[float, _option("width")] = _default("width"),
    image_size: Annotated[int, _option("image_size")] = _default("image_size"),
    greyscale: Annotated[bool, _option("greyscale", "--greyscale")] = _default("greyscale"),
    score_threshold: Annotated[float, _option("score_threshold")] = _default("score_threshold"),
    iou_threshold: Annotated[float, _option("iou_threshold")] = _default("iou_threshold"),
    max_detections: Annotated[int, _option("max_detections")] = _default("max_detections"),
    batch_size: Annotated[int, _option("batch_size")] = _default("batch_size"),
    limit: Annotated[int | None, _option("limit")] = _default("limit"),
    threads: Annotated[int | None, _option("threads")] = _default("threads"),
    workers: Annotated[int, _option("workers")] = _default("workers"),
    device: Annotated[str, _option("device")] = _default("device"),
    latency_runs: Annotated[int, _option("latency_runs")] = _default("latency_runs"),
    seed: Annotated[int, _option("seed")] = _default("seed"),
    train_data: Annotated[Path | None, _training("train_data")] = None,
    objective: Annotated[str, _training("objective")] = _default("objective"),
    train_attack: Annotated[str, _training("train_attack")] = _default("train_attack"),
    pretrain_epochs: Annotated[int, _training("pretrain_epochs")] = _default("pretrain_epochs"),
    optimise_epochs: Annotated[int, _training("optimise_epochs")] = _default("optimise_epochs"),
    finetune_epochs: Annotated[int, _training("finetune_epochs")] = _default("finetune_epochs"),
    max_steps: Annotated[int | None, _training("max_steps")] = _default("max_steps"),
    train_batch_size: Annotated[int, _training("train_batch_size")] = _default("train_batch_size"),
    pretrain_learning_rate: Annotated[float, _training("pretrain_learning_rate")] = _default("pretrain_learning_rate"),
    optimise_learning_rate: Annotated[float, _training("optimise_learning_rate")] = _default("optimise_learning_rate"),
    finetune_learning_rate: Annotated[float, _training("finetune_learning_rate")] = _default("finetune_learning_rate"),
    batch_norm: Annotated[str, _training("batch_norm")] = _default("batch_norm"),
    precision: Annotated[str, _training("precision")] = _default("precision"),
    augment: Annotated[bool, _training("augment", "--augment/--no-augment")] = _default("augment"),
    score_images: Annotated[int, _training("score_images")] = _default("score_images"),
    reference: Annotated[str, _training("reference")] = _default("reference"),
    verbose: Verbose = False,
) -> None:
    """Prune at each ratio, evaluate clean and attacked, accelerate, time, and report."""
    choices = {name: value for name, value in locals().items() if name in RunConfig.model_fields}
    with _user_errors(verbose):
        config = make_config(**(choices | {"ratios": parse_ratios(ratios)}))
        with ConsoleProgress(error_console) as progress:
            folder = run(config, progress)
            report = write_report(folder)
        out_console.print(results_table(read_rows(folder.results)))
        out_console.print(f"Report: {report}\nTable:  {folder.results}", highlight=False, soft_wrap=True)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="folder for data, weights and the run")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="of data and training")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="scaled and DeepLIFT scores, one-shot and optimised, at nine ratios: hours")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Render a small data set, train a narrow YOLOv3-tiny on it, do the five steps: a few minutes, offline."""
    with _user_errors(verbose):
        config = DemoConfig.full(out, seed) if full else DemoConfig(out, seed)
        out_console.print(f"This takes about {config.minutes:.0f} minutes on two cores.", highlight=False)
        with ConsoleProgress(error_console) as progress:
            folder = run_demo(config, progress)
        out_console.print(results_table(read_rows(folder.results)))
        out_console.print(next_steps(folder), highlight=False, soft_wrap=True)


@app.command("doctor")
def doctor_command() -> None:
    """Show what was built and what it runs on, what is missing and how to get it."""
    checks = doctor_report.examine()
    out_console.print(doctor_report.table(checks))
    raise typer.Exit(EXIT_FAILURE if any(check.is_broken for check in checks) else 0)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        out_console.print(f"prunekit {installed_version('prunekit')}", highlight=False)
        raise typer.Exit


@contextmanager
def _user_errors(verbose: bool) -> Iterator[None]:
    """Turn exceptions into one sentence and an exit code; with `verbose` the traceback comes first."""
    try:
        yield
    except KeyboardInterrupt:
        _say("Interrupted. Give the same command again to go on where it stopped.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except InputError as error:
        _say_error(str(error), verbose)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except Exception as error:
        hint = "" if verbose else " (-v shows where)"
        _say_error(f"{type(error).__name__}: {error}{hint}", verbose)
        raise typer.Exit(EXIT_FAILURE) from None


def _say_error(sentence: str, verbose: bool) -> None:
    if verbose:
        _say(traceback.format_exc())
    _say(f"Error: {sentence}" if sentence.endswith(".") else f"Error: {sentence}.")


def _say(text: str) -> None:
    error_console.print(escape(text), highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line."""
    app()
