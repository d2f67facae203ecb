"""What the command line shows: progress bars with the time left, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars
from rich.table import Table

from prunekit.report import Row

T = TypeVar("T")


class ConsoleProgress:
    """A `prunekit.pipeline.Progress` that draws one bar a running loop; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._bars = RichBars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> ConsoleProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def track(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:
        """Yield `items` under a bar that goes away at the end."""
        task = self._bars.add_task(description, total=total)
        try:
            for item in items:
                yield item
                self._bars.advance(task)
        finally:
            self._bars.remove_task(task)

    def message(self, text: str) -> None:
        """Print one line above the bars."""
        self._bars.console.print(escape(text), highlight=False)


def results_table(rows: Sequence[Row]) -> Table:
    """Return a short table of results.csv's rows."""
    table = Table(title="Pruned, attacked, accelerated, timed", title_justify="left")
    for heading in (
        "ratio",
        "AP",
        "AP50",
        "attacked AP",
        "attacked AP50",
        "control",
        "accelerated",
        "speed-up",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{float(row['ratio']):g} %",
            *(_cell(row[name], "{:.3f}") for name in ("ap", "ap50", "attacked_ap", "attacked_ap50")),
            *(_cell(row[name], "{:.2f} ms") for name in ("latency_ms_control", "latency_ms")),
            _cell(row["speedup"], "{:.2f}×"),
        )
    return table


def _cell(value: str, form: str) -> str:
    return form.format(float(value)) if value else "–"
