"""What `prunekit explain` shows: layers, where the time is, dense engines, and the totals in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from prunekit.benchmark import Row
from prunekit.benchmark.explanation import BESIDE, Explanation
from prunekit.processor import processor

_NAMED_LAYERS = 3


def layers_table(title: str, found: Explanation) -> Table:
    """Return a row for each convolution: its work, how it is cut, its time, and what limits it."""
    headings = ("layer", "weight", "10⁶ MACs", "density", "KiB moved", "runs as", "ms", "% of peak", "limited by")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        is_text = heading in ("layer", "weight", "runs as", "limited by")
        table.add_column(heading, justify="left" if is_text else "right")
    for row in found.rows:
        table.add_row(
            row.name,
            "×".join(map(str, row.weight_shape)),
            _number(row.kept_macs, 1e6, 2),
            f"{row.density:.3f}",
            _number(row.num_bytes, 1024, 0),
            row.implementation,
            _number(row.ms, 1, 3),
            _number(row.percent_of_peak, 1, 0),
            row.limit or row.reason,
        )
    return table


def _number(value: float | None, unit: float, digits: int) -> str:
    return "–" if value is None else f"{value / unit:.{digits}f}"


def shares_table(found: Explanation) -> Table:
    """Return the milliseconds by what limits them."""
    table = Table(title="Where the time is, and what would help", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("", "ms", "in", "layers", "what helps"):
        table.add_column(heading, justify="right" if heading in ("", "ms") else "left")
    for share in found.shares:
        more = len(share.layers) - _NAMED_LAYERS
        names = ", ".join(share.layers[:_NAMED_LAYERS]) + (f" and {more} more" if more > 0 else "")
        limit = share.limit.removeprefix(f"{BESIDE}: ")
        table.add_row(f"{share.fraction:.0%}", f"{share.ms:.2f}", limit, names or "–", share.advice)
    return table


def peers_table(rows: list[Row]) -> Table:
    """Return all competitors of one run, the slowest first."""
    table = Table(title="In turn with dense engines", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("", "ms", "p90", "against the fastest dense engine", "% of peak"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in sorted(rows, key=lambda row: -row.median_ms):
        times = f"{row.median_ms:.2f}", f"{row.p90_ms:.2f}", f"{row.speedup:.2f}×"
        table.add_row(row.competitor, *times, f"{row.percent_of_peak:.0f}")
    return table


def summary(found: Explanation, rows: list[Row]) -> Iterator[str]:
    """Yield the totals in sentences."""
    threads = f"{found.threads} thread{'s'[: found.threads > 1]}"
    yield f"{processor().name}, {found.instruction_set or 'no'} kernels, {threads}."
    if found.original_ms is not None:
        ratio = found.original_ms / found.ms
        yield f"{found.original_ms:.2f} ms in torch eager, {found.ms:.2f} ms accelerated: {ratio:.2f}×."
    else:
        yield f"{found.ms:.2f} ms a call."
    if found.least_ms is not None:
        yield (
            f"The kept multiply-adds alone take {found.least_ms:.2f} ms at this machine's peak of "
            f"{found.peak_gflops:.0f} GFLOP/s."
        )
    for name, why in (rows[0].not_timed if rows else {}).items():
        yield f"{name}: not timed, {why}."
    if found.engine != "whole graph":
        yield "The net is not on the engine as a whole, so its layers were not timed inside it."
    for note in found.notes:
        yield f"Note: {note}."
