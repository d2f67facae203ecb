"""Bounded queues between the threads of a pipeline, which either end may close."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """A queue of at most `size` items from one thread to another.

    Attributes:
        dropped: How many items gave way to newer ones, which only a channel that drops does.
    """

    def __init__(self, size: int, drops_oldest: bool = False) -> None:
        self.dropped = 0
        self._items: deque[T] = deque()
        self._size, self._drops_oldest = size, drops_oldest
        self._is_closed = self._is_abandoned = False
        self._changed = threading.Condition()

    def put(self, item: T) -> bool:
        """Add an item once there is room, or in the place of the oldest; return False where nobody reads any more."""
        with self._changed:
            if self._drops_oldest and len(self._items) == self._size:
                self._items.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: len(self._items) < self._size or self._is_abandoned)
            if not self._is_abandoned:
                self._items.append(item)
                self._changed.notify_all()
            return not self._is_abandoned

    def close(self) -> None:
        """Say that there will be no further items; those that are there will still be read."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Say that nobody will read any more."""
        with self._changed:
            self._is_abandoned = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._is_closed or self._is_abandoned)
                if not self._items or self._is_abandoned:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
