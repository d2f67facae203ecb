"""Ctrl-C at a moment that suits: between two steps of a loop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C inside the block; yield what says whether there was one.

    The loop asks between two steps, when everything belongs together, saves, and ends; KeyboardInterrupt is raised
    when the block does. A second Ctrl-C interrupts at once. Nothing is held back in a thread, where signals do not
    arrive, or under a caller's own handler.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    was_asked = False

    def note(number: int, frame: object) -> None:
        nonlocal was_asked
        if was_asked:
            raise KeyboardInterrupt
        was_asked = True

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: was_asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if was_asked:
        raise KeyboardInterrupt
