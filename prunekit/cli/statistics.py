"""`prunekit statistics`: what many runs say together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.ending import Verbose, tell, user_errors
from prunekit.errors import InputError
from prunekit.experiments import compare, measured_values, read_values
from prunekit.experiments.sentences import oddities, summarize
from prunekit.files import check_writable_folder
from prunekit.report import write_statistics

STATISTICS_EXAMPLES = """
Examples:

  prunekit statistics runs/matrix --out runs/matrix/report

  prunekit statistics --values appendix_a.csv --given map=0.176 --given latency_ms=119.3 --out out/

A line of the table is one value: metric, run, pruning_ratio_percent, value, and a column for each factor in which
configurations differ, such as structure and scores.
"""


def statistics_command(
    out: Annotated[Path, typer.Option(help="folder for the page, tables/ and figures/")],
    folder: Annotated[Path | None, typer.Argument(help="folder of an experiment, instead of --values")] = None,
    values: Annotated[Path | None, typer.Option(help="table of values as CSV, one a line")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            help="METRIC=VALUE of the weights as given, for the dashed line, where the values hold none (repeatable)"
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Compare configurations over many runs: tests, corrections, effect sizes, tables, figures and one HTML page."""
    with user_errors(verbose):
        if (folder is None) == (values is None):
            raise InputError("Expected an experiment's folder or --values, got " + ("both." if folder else "none."))
        check_writable_folder(out, "--out")
        found = measured_values(folder) if folder is not None else read_values(Path(str(values)))
        found = found.with_given(dict(map(_given, given or ())))
        page = write_statistics(found, out, str(folder or values), folder)
        comparisons = compare(found)
        for sentence in (*map(summarize, comparisons), *oddities(found, comparisons)):
            tell(sentence)
        tell(f"Page: {page}")


def _given(text: str) -> tuple[str, float]:
    metric, _, value = text.partition("=")
    try:
        return metric, float(value)
    except ValueError:
        raise InputError(f"--given: expected METRIC=VALUE, such as map=0.176, got {text!r}.") from None
