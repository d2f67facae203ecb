"""What can go wrong: the user's input, or a fast path's output."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: its message is one sentence saying what was expected, what was found and where.

    The command line prints the sentence without a traceback and exits with code 2.
    """


class WrongOutputError(RuntimeError):
    """An accelerated layer or model does not compute what the original computes."""


def first_line(error: BaseException) -> str:
    """Return an error's first line without its full stop, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip().removesuffix(".")
