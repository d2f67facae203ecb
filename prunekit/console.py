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

from prunekit.pipeline.progress import Description
from prunekit.report import Row, variants

T = TypeVar("T")

# Heading, column of results.csv, format: 80 characters wide in all.
_COLUMNS = (
    ("ratio", "ratio", "{:g} %"),
    ("\nAP", "ap", "{:.3f}"),
    ("\nAP50", "ap50", "{:.3f}"),
    ("attacked\nAP", "attacked_ap", "{:.3f}"),
    ("attacked\nAP50", "attacked_ap50", "{:.3f}"),
    ("dense\nms", "latency_ms_control", "{:.2f}"),
    ("prunekit\nms", "latency_ms", "{:.2f}"),
    ("\nspeed-up", "speedup", "{:.2f}×"),
)


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

    def track(self, items: Iterable[T], description: Description, total: int) -> Iterator[T]:
        """Yield `items` under a bar that goes away at the end."""
        task = self._bars.add_task(_text(description), total=total)
        try:
            for item in items:
                yield item
                self._bars.update(task, advance=1, description=_text(description))
        finally:
            self._bars.remove_task(task)

    def message(self, text: str) -> None:
        """Print one line above the bars."""
        self._bars.console.print(escape(text), highlight=False)


def results_table(rows: Sequence[Row]) -> Table:
    """Return a short table of results.csv's rows."""
    table = Table(title="Pruned, attacked, accelerated, timed", title_justify="left")
    groups = variants(rows)
    if len(groups) > 1:
        table.add_column("variant")
    for heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, group in groups.items():
        for row in group:
            cells = [_cell(row[column], form) for _, column, form in _COLUMNS]
            table.add_row(*([name] if len(groups) > 1 else []), *cells, end_section=row is group[-1])
    return table


def _text(description: Description) -> str:
    return description if isinstance(description, str) else description()


def _cell(value: str, form: str) -> str:
    return form.format(float(value)) if value else "–"
