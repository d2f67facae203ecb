"""Workers as processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from prunekit.errors import InputError
from prunekit.experiments.driver import Done, Event, Failed, Told
from prunekit.experiments.plan import Job
from prunekit.progress import Description, Progress

T = TypeVar("T")
Doing = Callable[[Job, Progress], dict[str, Any]]
_TELL_EVERY, _PATIENCE = 0.5, 60.0  # seconds: between reports of a loop; for an interrupted training to save its state


class LocalPool:
    """Processes that do one job at a time each; one that fails or dies is replaced."""

    def __init__(self, work: Doing, size: int) -> None:
        self.size = size
        self._work = work
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["prunekit.experiments.work"])  # imported once, for all workers
        self._idle: list[_Worker] = []
        self._busy: dict[str, _Worker] = {}

    def submit(self, job: Job) -> None:
        """Give a job to a worker."""
        worker = self._idle.pop() if self._idle else _Worker(self._context, self._work)
        self._busy[job.name] = worker
        worker.give(job)

    def wait(self, seconds: float) -> list[Event]:
        """Return what has happened, at the latest after so many seconds."""
        wait([worker.connection for worker in self._busy.values()], seconds)
        return [event for name in list(self._busy) for event in self._events(name)]

    def close(self) -> None:
        """End the workers; trainings under way save their state first."""
        workers = [*self._idle, *self._busy.values()]
        for worker in workers:
            worker.end(worker in self._busy.values())
        for worker in workers:
            worker.process.join(_PATIENCE)
            worker.process.kill()

    def _events(self, name: str) -> Iterator[Event]:
        worker = self._busy[name]
        try:
            while worker.connection.poll():
                kind, value = worker.connection.recv()
                yield kind(name, *value)
                if kind is not Told:
                    del self._busy[name]
                    self._idle += [worker] if kind is Done else []  # one that failed may hold what its job held
                    return
        except (EOFError, OSError):  # it was killed
            del self._busy[name]
            worker.process.join()
            yield Failed(name, f"its worker process ended with exit code {worker.process.exitcode}", retry=True)


class _Worker:
    def __init__(self, context: Any, work: Doing) -> None:
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=False)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the connection

    def give(self, job: Job) -> None:
        try:
            self.connection.send(job)
        except OSError:  # it was killed while it waited, which reading will tell
            return

    def end(self, is_busy: bool) -> None:
        if is_busy and self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGINT)
        self.connection.close()


class _Telling:
    """A `Progress` that reports to the driver."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._told = connection, 0.0

    def track(self, items: Iterable[T], description: Description, total: int) -> Iterator[T]:
        """Yield `items`, and say now and then how far the loop has come."""
        for count, item in enumerate(items):
            if time.monotonic() - self._told > _TELL_EVERY:
                self._told = time.monotonic()
                text = description if isinstance(description, str) else description()
                self._connection.send((Told, (f"{text} {count} of {total}", True)))
            yield item

    def message(self, text: str) -> None:
        """Pass a line on."""
        self._connection.send((Told, (text, False)))


def _serve(connection: Connection, work: Doing) -> None:
    """Do jobs until one fails, or the driver ends the connection, or ends itself."""
    os.setpgid(0, 0)  # Ctrl-C reaches the driver alone, which passes it on once
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    try:
        kind: type[Event] = Done
        while kind is Done:
            kind, value = outcome(work, connection.recv(), _Telling(connection))
            connection.send((kind, value))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def outcome(work: Doing, job: Job, progress: Progress) -> tuple[type[Event], tuple[Any, ...]]:
    """Do a job; return the kind of event that its end is, and what belongs to it."""
    try:
        return Done, (work(job, progress),)
    except InputError as error:  # would be the same again
        return Failed, (str(error), False)
    except Exception as error:
        return Failed, (f"{type(error).__name__}: {error}", True)


def _end_with_the_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    wait([driver.sentinel])
    os._exit(1)  # its folder is free for the next driver
