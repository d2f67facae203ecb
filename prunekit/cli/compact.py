"""`prunekit compact`: remove the filters that pruning dropped, for good."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.ending import Verbose, error_console, tell, user_errors
from prunekit.cli.options import option_help
from prunekit.compaction import EXPORTS, MULTIPLES, compact, export, save
from prunekit.console import ConsoleProgress
from prunekit.environment import thread_count
from prunekit.errors import InputError
from prunekit.files import check_writable_file
from prunekit.pipeline.checkpoint import example_image, find_checkpoint, requested_spec
from prunekit.pipeline.choices import architectures, wrong_image_size
from prunekit.pipeline.own_models import model_arguments, name_own_model
from prunekit.task import ModelSpec, load_plugin, models, takes_argument

COMPACT_EXAMPLES = f"""
Examples:

  prunekit compact runs/first --unit filter-scaled-one-shot-ratio_50 --out small.prunekit

  prunekit compact runs/finetuned --out small.prunekit --multiple-of 8 --export onnx

  prunekit compact pruned.weights --model yolov3-tiny --out small.prunekit

Before anything is written, the outputs are compared with the masked model's in float64 at several sizes. Without
--multiple-of, channel counts are rounded up to the fastest measured multiple of {", ".join(map(str, MULTIPLES))}.
"""

_LARGEST_SIZE = 4096


def compact_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="run folder, output folder of another command, .safetensors file or darknet .weights file",
        ),
    ],
    out: Annotated[Path, typer.Option(help="output file, for prunekit.load")],
    multiple_of: Annotated[
        int | None, typer.Option(help="round channel counts up to a multiple of N; 1: no rounding (default: measured)")
    ] = None,
    export_to: Annotated[
        str | None, typer.Option("--export", help=f"also export it for another runtime: {' or '.join(EXPORTS)}")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="unit of a run folder: a file name in units/, without .json")] = None,
    model: Annotated[str | None, typer.Option(help=f"of a file that does not say it: {architectures()}")] = None,
    model_args: Annotated[list[str] | None, typer.Option(help=option_help("model_args"))] = None,
    task: Annotated[str | None, typer.Option(help=option_help("task"))] = None,
    num_classes: Annotated[int, typer.Option(help="number of classes of a darknet file")] = 80,
    width: Annotated[float | None, typer.Option(help="width multiplier of a darknet file")] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="image size for measuring, in pixels; the result runs at any size (default: the model's)"),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="number of torch threads (default: torch's choice)")] = None,
    plugin: Annotated[list[str] | None, typer.Option(help="module of yours that registers the model")] = None,
    verbose: Verbose = False,
) -> None:
    """Remove pruned filters for good: a smaller detector with the same outputs, and a certificate that says so."""
    with user_errors(verbose):
        for module in plugin or ():
            load_plugin(module)
        name_own_model(model, task, model_args or ())
        _check(out, multiple_of, export_to, model, image_size, threads)
        with thread_count(threads), ConsoleProgress(error_console) as progress:
            spec = _spec(model, width, num_classes, model_args or ())
            detector = find_checkpoint(source, unit, spec)
            size = detector.task.image_size if image_size is None else image_size
            if wrong := wrong_image_size(size, detector.task):
                raise InputError(f"{wrong}.")
            x = example_image(size)
            for _ in progress.track(range(1), "compacting", 1):
                result = compact(detector.model, x, multiple_of=multiple_of)
            save(result, out)
            written = [out]
            if export_to is not None:
                written.append(out.with_suffix(EXPORTS[export_to]))
                for _ in progress.track(range(1), f"exporting to {export_to}", 1):
                    export(result.model, result.example, export_to, written[-1])
        tell(str(result.certificate))
        for file in written:
            tell(f"Written: {file}")


def _spec(model: str | None, width: float | None, num_classes: int, model_args: Sequence[str]) -> ModelSpec | None:
    if model is None:
        return None
    classes = {"num_classes": num_classes} if takes_argument(model, "num_classes") else {}
    return requested_spec(model, width, arguments=model_arguments(model_args)).updated(**classes)


def _check(
    out: Path,
    multiple_of: int | None,
    export_to: str | None,
    model: str | None,
    image_size: int | None,
    threads: int | None,
) -> None:
    check_writable_file(out, "--out")
    if multiple_of is not None and multiple_of < 1:
        raise InputError(f"--multiple-of: expected a whole number of at least 1, got {multiple_of}.")
    if export_to is not None and export_to not in EXPORTS:
        raise InputError(f"--export: expected one of {', '.join(EXPORTS)}, got {export_to!r}.")
    if model is not None and ":" not in model and model not in models():
        raise InputError(f"--model: expected one of {', '.join(models())}, got {model!r}.")
    if image_size is not None and not 1 <= image_size <= _LARGEST_SIZE:
        raise InputError(f"--image-size: expected a number of pixels up to {_LARGEST_SIZE}, got {image_size}.")
    if threads is not None and not 1 <= threads <= 1024:
        raise InputError(f"--threads: expected a whole number from 1 to 1024, got {threads}.")
