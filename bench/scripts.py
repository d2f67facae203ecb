"""What the scripts share: command lines, rows as JSON lines, printed or in files, and calls that differentiate."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prunekit.environment import describe_environment
from prunekit.errors import InputError
from prunekit.task import models

Row = dict[str, Any]


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a script's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


@contextmanager
def one_sentence() -> Iterator[None]:
    """End with an InputError's sentence and exit code 2, as the command line of prunekit does."""
    try:
        yield
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def check_device(device: str) -> None:
    """Make sure that torch can use a device, before anything is run on it.

    Raises:
        InputError: It is a GPU's, and torch is built without CUDA or finds no GPU.
    """
    if torch.device(device).type != "cuda" or torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        raise InputError(f"Expected a CUDA build of torch for the device {device}, got {torch.__version__}.")
    raise InputError(
        f"Expected an NVIDIA GPU that torch {torch.__version__} can use, got none; "
        "nvidia-smi says whether the driver runs."
    )


def add_net_options(parser: argparse.ArgumentParser, model: str, batch_size: int, runs: int) -> None:
    """Add the options of scripts that time passes of one net; the other arguments are their defaults."""
    parser.add_argument("--model", choices=models(), default=model)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=416)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=runs)


def net_facts(options: argparse.Namespace) -> Row:
    """Return what rows say of the net that `add_net_options` names."""
    return {name: getattr(options, name) for name in ("model", "width", "image_size", "batch_size")}


def print_row(row: Mapping[str, Any]) -> None:
    """Print a row as a JSON line."""
    print(json.dumps(row), flush=True)


def begin(threads: int, **facts: Any) -> None:
    """Let torch use so many threads, and print what the rows are measured on."""
    torch.set_num_threads(threads)
    print_row({"environment": describe_environment(), "threads": threads, **facts})


def append_rows(path: Path, rows: Iterable[Row]) -> list[Row]:
    """Add each row to a file when it is there; return them all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = []
    with path.open("a", buffering=1) as file:  # a line a write
        for row in rows:
            file.write(json.dumps(row) + "\n")
            found.append(row)
    return found


def read_rows(path: Path) -> list[Row]:
    """Return a file's rows; what a process leaves that is ended while it writes, half a line, is none."""
    return [row for line in whole_lines(path) if (row := _parsed(line)) is not None]


def whole_lines(path: Path) -> list[str]:
    """Return a file's lines without a last one that does not end; none where there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith("\n")]


def _parsed(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def with_gradients(call: Callable[[], object]) -> Callable[[], object]:
    """Let a call differentiate although timing switches gradients off."""

    def run() -> object:
        with torch.inference_mode(False):
            return call()

    return run
