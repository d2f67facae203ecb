"""The table of `bench.zoo`'s rows, and whether they meet the criteria."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.zoo_checks import MOST, allowed_error
from bench.zoo_rows import TOOLS, Check, Latency, Row, Tool

# Two runs of the same code differ by less; what differs by more than the ratio's own spread is no noise either.
_LEAST_NOISE = 0.02
# Relative RMS between the outputs of two images below which agreement would prove little.
_LEAST_EFFECT = 1e-3
_LONGEST = 160  # characters of a cell and of what is said of a model; the rows hold all of it
_COLUMNS = ("model", "tool", "engine", "example", "batch 2", "other size", "eager ms", "compile ms", "prunekit ms")
_MORE_COLUMNS = ("speed-up", "parameters", "notes")


@dataclass(frozen=True)
class Criteria:
    """What the rows must reach.

    Attributes:
        models: How many each tool must have worked on.
        whole_graph: How many `accelerate` must have put on the engine whole.
    """

    models: int = 70
    whole_graph: int = 60


@dataclass(frozen=True)
class Verdict:
    """The lines that say how the rows stand, and whether all criteria are met."""

    lines: tuple[str, ...]
    is_met: bool


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table with a line for each row."""
    columns = (*_COLUMNS, *_MORE_COLUMNS)
    return "\n".join([_line(columns), "|---" * len(columns) + "|", *(_line(_cells(row)) for row in rows)])


def judge(rows: Sequence[Row], criteria: Criteria | None = None) -> Verdict:
    """Return the verdict on all rows, tool by tool; no rows meet no criteria."""
    criteria = criteria or Criteria()
    tools = [tool for tool in TOOLS if any(row.tool == tool for row in rows)]
    verdicts = [_judge_tool(tool, [row for row in rows if row.tool == tool], criteria) for tool in tools]
    is_met = bool(verdicts) and all(verdict.is_met for verdict in verdicts)
    lines = [line for verdict in verdicts for line in verdict.lines] or ["no rows"]
    return Verdict((*lines, f"criteria {'met' if is_met else 'NOT met'}"), is_met)


def is_slower(row: Row) -> bool:
    """Return whether the result was slower than the model itself, beyond what was measured as noise."""
    latency = row.latencies.get("prunekit")
    return latency is not None and latency.ratio - max(_LEAST_NOISE, latency.ratio_spread) > 1


def problems_of(row: Row) -> list[str]:
    """Return what is wrong with a row's outputs, in sentences."""
    found = [f"{name}: {check.problem}" for name, check in row.checks.items() if check.problem]
    most = allowed_error(row.own_rounding)
    found += [f"{name}: error {e:.2g}" for name, c in row.checks.items() if (e := c.error) is not None and e > most]
    if row.is_original_unchanged is False:
        found.append("the model itself was changed")
    if row.checks and row.input_effect is not None and row.input_effect < _LEAST_EFFECT:
        found.append(f"the image changes the outputs by only {row.input_effect:.2g}: proves nothing")
    return found


def _judge_tool(tool: Tool, rows: Sequence[Row], criteria: Criteria) -> Verdict:
    done = [row for row in rows if row.exception_type is None]
    refused = [row for row in rows if row.exception_type == "InputError"]
    raised = [row for row in rows if row.exception_type not in (None, "InputError")]
    wrong = [row for row in rows if problems_of(row)]
    slower = [row for row in done if is_slower(row)]
    ill = [row for row in done if allowed_error(row.own_rounding) > MOST]
    errors = [c.error for row in done if row not in ill for c in row.checks.values() if c.error is not None]
    engines = Counter(row.engine for row in done if row.engine)
    checks = [check for row in done for check in row.checks.values()]
    met = {
        f"{len(rows)} models, {len(done)} done (at least {criteria.models} wanted)": len(done) >= criteria.models,
        _listed("exceptions other than InputError", raised, _exception): not raised,
        _listed("InputErrors", refused, _exception): True,
        _listed("wrong or unproven", wrong, lambda row: "; ".join(problems_of(row))): not wrong,
        _listed("models that round badly themselves", ill, lambda row: f"{row.own_rounding:.2g} from float64"): True,
        f"largest error of the others {max(errors):.2g} (at most {MOST:g} allowed); "
        f"compared {sum(c.tensors for c in checks)} tensors, "
        f"{sum(c.elements for c in checks)} elements" if errors else "no outputs were compared": bool(errors),
        _listed("inputs refused that the model takes", [row for row in done if _refusals(row)], _refusals): True,
        _listed("slower than eager beyond noise", slower, _ratio): not slower,
    }  # fmt: skip
    if tool == "accelerate":
        whole = engines["whole graph"]
        spread = ", ".join(f"{count} {engine}" for engine, count in engines.most_common())
        met[f"whole graph {whole} (at least {criteria.whole_graph} wanted); {spread}"] = whole >= criteria.whole_graph
    lines = [f"{'ok  ' if is_met else 'FAIL'} {tool}: {line}" for line, is_met in met.items()]
    return Verdict(tuple(lines), all(met.values()))


def _listed(what: str, rows: Sequence[Row], describe: Callable[[Row], str]) -> str:
    named = "; ".join(f"{row.model} ({_shortened(describe(row))})" for row in rows)
    return f"{len(rows)} {what}{': ' if named else ''}{named}"


def _exception(row: Row) -> str:
    return f"{row.exception_type}: {row.exception}"


def _refusals(row: Row) -> str:
    return "; ".join(f"{name}: {check.refused}" for name, check in row.checks.items() if check.refused)


def _ratio(row: Row) -> str:
    latency = row.latencies["prunekit"]
    return f"{latency.ratio:.2f} ± {latency.ratio_spread:.2f} of eager's time"


def _cells(row: Row) -> Iterable[str]:
    prunekit, eager = row.latencies.get("prunekit"), row.latencies.get("eager")
    notes = [_exception(row)] if row.exception_type else [*problems_of(row), *([_refusals(row)] * bool(_refusals(row)))]
    before, after = row.parameters_before, row.parameters_after
    return (
        row.model,
        row.tool,
        row.engine or "–",
        *(_check_cell(check) for check in (row.example, row.batch, row.other_size)),
        *(_latency_cell(latency) for latency in (eager, row.latencies.get("compile"), prunekit)),
        "–" if prunekit is None else f"{1 / prunekit.ratio:.2f}{' SLOWER' if is_slower(row) else ''}",
        "–" if not before or after is None else f"{100 * after / before:.0f} %",
        _shortened("; ".join([*notes, *row.notes]).replace("|", "¦")) or "–",
    )


def _check_cell(check: Check | None) -> str:
    if check is None:
        return "–"
    if check.error is not None:
        return f"{check.error:.1e}{'' if check.compared == 'outputs' else f' ({check.compared})'}"
    if check.refused:
        return "refused"
    return "not taken by the model" if check.unsupported else "WRONG"


def _latency_cell(latency: Latency | None) -> str:
    return "–" if latency is None else f"{latency.median_ms:.1f} ± {100 * latency.spread:.0f} %"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
