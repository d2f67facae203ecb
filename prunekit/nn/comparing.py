"""The gate of accelerated models under its former name; `prunekit.comparison` is where it lives."""

from __future__ import annotations

from prunekit import comparison
from prunekit.comparison import MAX_RELATIVE_RMS


def check_equal(expected: object, actual: object, most: float = MAX_RELATIVE_RMS) -> None:
    """Compare outputs of any nesting; see `prunekit.comparison.check_equal`.

    Raises:
        WrongOutputError: they differ by more than `most`, in relative RMS, or hold no number.
    """
    comparison.check_equal(expected, actual, "the accelerated model", most)
