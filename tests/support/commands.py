"""Run commands of the command line: in this process, or in one that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from prunekit import cli

Options = dict[str, Any]


def arguments(command: str, options: Mapping[str, Any]) -> list[str]:
    """Return a command line; an option that is True is a flag, one that is None or False is left out."""
    parts = [command]
    for name, value in options.items():
        if value is True:
            parts.append(f"--{name}")
        elif value is not None and value is not False:
            parts += [f"--{name}", str(value)]
    return parts


def invoke(command: str, options: Mapping[str, Any], *flags: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli.app, [*arguments(command, options), *flags])


def succeed(command: str, options: Mapping[str, Any]) -> Result:
    """Run a command in this process and require that it succeeds."""
    result = invoke(command, options)
    assert result.exit_code == 0, result.stderr
    return result


def start(command: str, options: Mapping[str, Any], log: Path) -> BaseProcess:
    """Start a command in a process of its own, forked from one that has imported everything: that takes no time."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["prunekit.cli", "torch._dynamo", __name__])  # optimizers import the second one
    process = server.Process(target=_main, args=(arguments(command, options), str(log)))
    process.start()
    return process


def wait_for_lines(path: Path, count: int, process: BaseProcess) -> None:
    """Wait until a growing file has so many lines, or the process ends."""
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        if path.is_file() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.002)


def tree(root: Path) -> dict[str, bytes]:
    """Return every file's content by its path, but for TensorBoard's, whose names hold times and process ids."""
    files = [path for path in root.rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def results(root: Path) -> dict[str, bytes]:
    """Return a command's `tree` without the folder's own path, which config.yaml holds."""
    return {name: content.replace(str(root).encode(), b"OUT") for name, content in tree(root).items()}


def _main(argv: list[str], log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the test's own process was started with
    cli.app(argv)
