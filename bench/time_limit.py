"""Time limits that hold: work that would not fit what is left is skipped with a note, and processes are ended."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from bench.scripts import command_line

_Result = TypeVar("_Result")
_LAST_SECONDS = 5.0


def measuring_command_line(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of scripts that measure for a limited time and then judge."""
    parser = command_line(doc)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0, help="begin nothing that would end after so long")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-verdict", action="store_true")
    return parser


@dataclass
class TimeLimit:
    """So many seconds from now on.

    Attributes:
        seconds: in all.
        clock: tells seconds.
        skipped: what did not fit.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    skipped: list[str] = field(default_factory=list)
    _begin: float = 0.0
    _longest: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin."""
        self._begin = self.clock()

    @property
    def left(self) -> float:
        """Seconds, never less than 0."""
        return max(0.0, self._begin + self.seconds - self.clock())

    def run(self, kind: str, call: Callable[[], _Result], expected: float = 0.0) -> _Result | None:
        """Call, or skip what is expected to take longer than is left: as long as the longest of its kind so far.

        Args:
            kind: of the work, for what it is expected to take, and for the note.
            call: does it.
            expected: seconds that the first of its kind is taken to need.
        """
        if max(expected, self._longest.get(kind, 0.0)) >= self.left:
            self.skipped.append(f"{kind}: {self.left:.0f} s were left")
            return None
        begin = self.clock()
        result = call()
        self._longest[kind] = max(self._longest.get(kind, 0.0), self.clock() - begin)
        return result


def run_process(
    command: Sequence[str],
    seconds: float,
    output: IO[str] | int | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[int | None, str]:
    """Run a program for at most so long; it and what it started, compilers say, are ended then.

    Args:
        command: program and arguments.
        seconds: after which it is ended.
        output: a file for what it prints, errors included, or subprocess.PIPE to have it returned; else it prints where
            this program does.
        env: its environment; this program's if not given.

    Returns:
        Its exit code, None if it was ended, and what it printed.
    """
    errors = None if output is None or output == subprocess.PIPE else subprocess.STDOUT
    process = subprocess.Popen(command, stdout=output, stderr=errors, text=True, env=env, start_new_session=True)
    try:
        printed, _ = process.communicate(timeout=max(0.0, seconds))
        return process.returncode, printed or ""
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    try:
        printed, _ = process.communicate(timeout=_LAST_SECONDS)
        return None, printed or ""
    except subprocess.TimeoutExpired:  # a driver may keep a process that is no more
        return None, ""
