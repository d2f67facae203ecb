"""Running on tensors without memory: what a file describes is found wrong when it is loaded, not when it is called."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

_LOG = "torch._subclasses.fake_tensor"


@contextmanager
def without_memory() -> Iterator[FakeTensorMode]:
    """Make tensors that have a shape, a dtype and no memory within the block, and let operators run on them.

    The block ends where an operator's output's size depends on its input's values: nothing is known behind it. Nothing
    is logged: that an operator does not take what it is given is an answer here, and no fault of torch's.
    """
    log = logging.getLogger(_LOG)
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    except (DataDependentOutputException, DynamicOutputShapeException):
        pass
    finally:
        log.setLevel(level)
