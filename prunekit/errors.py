"""The one exception for problems with what the user gave."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: its message is one sentence saying what was expected, what was found and where.

    The command line prints the sentence without a traceback and exits with code 2.
    """
