"""How commands end: where they write, and which exit code each kind of end has."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from prunekit.attacks import GradientError
from prunekit.errors import InputError, is_disk_full, unwritable
from prunekit.evaluation.sanity_rules import MeaninglessEvaluationError
from prunekit.prune import CompletenessError
from prunekit.training.loop import TrainingDivergedError

EXIT_FAILURE, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
# What can come of sound input and a sound program; their messages say all there is to say.
_EXPECTED_FAILURES = (MeaninglessEvaluationError, TrainingDivergedError, CompletenessError, GradientError)
_FULL_DISK = "Expected free space on the disk, got none. Free some, then give the same command again"

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks of errors.")]

out_console = Console()
error_console = Console(stderr=True)


def tell(text: str) -> None:
    """Print a line of the result, in one piece however narrow the terminal is."""
    out_console.print(text, highlight=False, soft_wrap=True, markup=False)


def tell_any(text: str) -> None:
    """Print a line of the result, if there is one."""
    if text:
        tell(text)


@contextmanager
def user_errors(verbose: bool) -> Iterator[None]:
    """Turn exceptions into one sentence and an exit code; with `verbose` the traceback comes first."""
    try:
        yield
    except KeyboardInterrupt:
        _say("Interrupted. Give the same command again to go on where it stopped.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except InputError as error:
        _say_error(str(error), verbose)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except _EXPECTED_FAILURES as error:
        _say_error(str(error), verbose)
        raise typer.Exit(EXIT_FAILURE) from None
    except Exception as error:
        if isinstance(error, OSError) and (sentence := unwritable(error)) is not None:
            _say_error(str(sentence), verbose)
            raise typer.Exit(EXIT_BAD_INPUT) from None
        if is_disk_full(error):
            _say_error(_FULL_DISK, verbose)
            raise typer.Exit(EXIT_FAILURE) from None
        hint = "" if verbose else " (-v shows where)"
        _say_error(f"{type(error).__name__}: {error}{hint}", verbose)
        raise typer.Exit(EXIT_FAILURE) from None


def _say_error(sentence: str, verbose: bool) -> None:
    if verbose:
        _say(traceback.format_exc())
    _say(f"Error: {sentence}" if sentence.endswith(".") else f"Error: {sentence}.")


def _say(text: str) -> None:
    error_console.print(escape(text), highlight=False, soft_wrap=True)
