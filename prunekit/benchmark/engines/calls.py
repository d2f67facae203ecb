"""What every engine returns: a call without arguments; or, in one sentence, why it cannot run here."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

from torch import Tensor

#: Runs a model on its input and returns its outputs.
Call = Callable[[], "tuple[Tensor, ...]"]


class UnavailableError(RuntimeError):
    """An engine cannot do here what its name says; the message is the end of a sentence, without a full stop."""


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return a model's outputs as a tuple, also where there is but one."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the remarks of a foreign package off the terminal: warnings, logs below errors, what it prints.

    Standard output is for rows, and a second progress bar would draw over the first.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
