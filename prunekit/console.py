"""What the command line shows: progress bars with the time left, and tables."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars
from rich.table import Table
from rich.text import Text

from prunekit.evaluation.corruptions import SEVERITIES, Cell
from prunekit.evaluation.corruptions.summary import CorruptionSummary
from prunekit.evaluation.sanity_rules import CheckReport
from prunekit.pipeline.deployed_evaluation import digits_of
from prunekit.progress import Description
from prunekit.prune.sensitivity import Sensitivity
from prunekit.report import Row, variants
from prunekit.task import Figure

T = TypeVar("T")

_REMEMBERED_SECONDS = 30.0  # after which a step of a loop counts a third of the last one

# Heading, column of results.csv, format: with two figures of accuracy, 80 characters wide in all.
_LATENCIES = (
    ("dense\nms", "latency_ms_control", "{:.2f}"),
    ("prunekit\nms", "latency_ms", "{:.2f}"),
    ("\nspeed-up", "speedup", "{:.2f}×"),
)

# Of models whose filters were dropped: heading, column, format.
_COMPACTED = (
    ("ratio", "ratio", "{:g} %"),
    ("\nparameters", "compacted_parameters", "{:,.0f}"),
    ("\nMACs", "compacted_macs", "{:,.0f}"),
    ("dense\nms", "latency_ms_control", "{:.2f}"),
    ("compacted\nms", "latency_ms_compacted", "{:.2f}"),
    ("accelerated\nms", "latency_ms_compacted_accelerated", "{:.2f}"),
    ("\nspeed-up", "compacted_speedup", "{:.2f}×"),
)

# Heading, figure of a case; those that a task does not have are left out.
_FIGURES = (
    ("AP at\n0.5", "confident_ap"),
    ("false\nalarms", "false_positives_per_image"),
    ("attack\nsuccess", "attack_success"),
)


class Pace:
    """How long a loop's steps take: a mean in which a step counts the less the longer ago it was.

    So steps of minutes have one, too, and what a resumed loop passes over in no time is soon forgotten.
    """

    def __init__(self) -> None:
        self._seconds, self._steps, self._last = 0.0, 0.0, time.monotonic()

    def step(self) -> None:
        """Count a step that has just ended."""
        now = time.monotonic()
        kept = math.exp((self._last - now) / _REMEMBERED_SECONDS)
        self._seconds, self._steps = self._seconds * kept + now - self._last, self._steps * kept + 1
        self._last = now

    def left(self, steps: float) -> str:
        """Return how long so many steps take from now: 0:03:20."""
        if not self._steps:
            return "-:--:--"
        seconds = self._seconds / self._steps * steps - (time.monotonic() - self._last)
        return str(timedelta(seconds=max(0, round(seconds))))


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["pace"].left(task.remaining or 0), style="progress.remaining")


class ConsoleProgress:
    """A `prunekit.progress.Progress` that draws one bar a running loop; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._bars = RichBars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            _TimeLeft(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> ConsoleProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def track(self, items: Iterable[T], description: Description, total: int) -> Iterator[T]:
        """Yield `items` under a bar that goes away at the end."""
        pace = Pace()
        task = self._bars.add_task(_text(description), total=total, pace=pace)
        try:
            for item in items:
                yield item
                pace.step()
                self._bars.update(task, advance=1, description=_text(description))
        finally:
            self._bars.remove_task(task)

    def message(self, text: str) -> None:
        """Print one line above the bars."""
        self._bars.console.print(escape(text), highlight=False)


def titled(title: str, texts: Iterable[str], numbers: Iterable[str]) -> Table:
    """Return a table without rows: columns of text, then of numbers, which are aligned and never wrapped."""
    table = Table(*texts, title=title, title_justify="left")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def results_table(rows: Sequence[Row], figures: Sequence[Figure]) -> Table:
    """Return a short table of results.csv's rows, with a task's figures."""
    groups = variants(rows)
    names = ["\nvariant"] if len(groups) > 1 else []
    figures = figures[:1] if names else figures  # names need the room of the other figures' columns
    clean = [(f"\n{figure.name}", figure.column, "{:.3f}") for figure in figures]
    attacked = [(f"attacked\n{figure.name}", f"attacked_{figure.column}", "{:.3f}") for figure in figures]
    columns = (("ratio", "ratio", "{:g} %"), *clean, *attacked, *_LATENCIES)
    table = titled("Pruned, attacked, accelerated, timed", names, (heading for heading, _, _ in columns))
    for name, group in groups.items():
        for row in group:
            cells = [_cell(row[column], form) for _, column, form in columns]
            table.add_row(*([name] if names else []), *cells, end_section=row is group[-1])
    return table


def compacted_table(rows: Sequence[Row]) -> Table | None:
    """Return a short table of the models that could be compacted; None where no filters were dropped."""
    compacted = [row for row in rows if row.get("latency_ms_compacted")]
    if not compacted:
        return None
    table = titled("Dropped filters removed for good", (), (heading for heading, _, _ in _COMPACTED))
    for row in compacted:
        table.add_row(*(_cell(row[column], form) for _, column, form in _COMPACTED))
    return table


def evaluation_table(cases: Mapping[str, Mapping[str, float | None]], figures: Sequence[Figure]) -> Table:
    """Return a short table of an evaluation's cases, clean and under each attack, with a task's figures."""
    known = {name for case in cases.values() for name in case}
    columns = [(f"\n{figure.name}", figure.column) for figure in figures]
    columns += [(heading, column) for heading, column in _FIGURES if column in known or "attack" in column]
    table = titled("Clean and attacked", ["attack"], (heading for heading, _ in columns))
    for name, case in cases.items():
        table.add_row(name, *(_cell(_known(case.get(column)), "{:.3f}") for _, column in columns))
    return table


def corruptions_table(summary: CorruptionSummary) -> Table:
    """Return the main figure by corruption and severity, and each corruption's mean."""
    headings = [*(str(severity) for severity in SEVERITIES), "mean"]
    table = titled(f"{summary.figure.name} under corruptions, by severity", ["corruption"], headings)
    for name in dict.fromkeys(cell.corruption for cell in summary.values):
        values = [summary.values.get(Cell(name, severity)) for severity in SEVERITIES]
        table.add_row(name, *(_cell(_known(value), "{:.3f}") for value in (*values, summary.of_corruption(name))))
    return table


def deployed_table(rows: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Return the figures of a checkpoint and of what was deployed: a line for each, as there are more than models."""
    table = titled("What is deployed", ["figure"], map(escape, rows))
    for heading in dict.fromkeys(heading for row in rows.values() for heading in row):
        form = f"{{:.{digits_of(heading)}f}}"
        table.add_row(escape(heading), *(_cell(_known(row.get(heading)), form) for row in rows.values()))
    return table


def checks_table(report: CheckReport) -> Table:
    """Return the checks of an evaluation, each with its verdict and what was seen."""
    table = titled("Is this evaluation sound?", ("check", "", "what was seen"), ())
    for row in report.rows:
        table.add_row(row.name, "[green]passed" if row.passed else "[red]failed", escape(row.sentence))
    return table


def sensitivities_table(found: Mapping[str, Sensitivity], weights: Mapping[str, int]) -> Table:
    """Return the modules with their share of the weights and their sensitivities, the most sensitive first."""
    table = Table(title="Module robustness sensitivity", title_justify="left")
    table.add_column("module")
    for heading in ("share of\nweights", "\nsensitivity", "to first\norder"):
        table.add_column(heading, justify="right", no_wrap=True)
    total = sum(weights[name] for name in found)
    for name, one in sorted(found.items(), key=lambda item: -item[1].value):
        exact = "–" if one.exact is None else f"{one.exact:.4g}"
        table.add_row(escape(name), f"{weights[name] / total:.1%}", exact, f"{one.first_order:.4g}")
    return table


def _known(value: float | None) -> str:
    return "" if value is None else str(value)


def _text(description: Description) -> str:
    return description if isinstance(description, str) else description()


def _cell(value: str, form: str) -> str:
    return form.format(float(value)) if value else "–"
