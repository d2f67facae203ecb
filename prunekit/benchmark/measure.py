"""The two questions: is a pruned net faster end to end, and layer by layer, than the fastest dense engine?

    rows = run_bench(Settings("end-to-end", ("yolov3-tiny",), (1,)), Path("rows.jsonl"), SilentProgress())

A group is a problem (a net, or one of its layers) at one number of threads. All of its competitors, dense peers and
every ratio, are timed in turn in one run, because a speed-up counts only inside one run; its rows are written
together when the run ends. A group whose rows are in the file is not measured again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from prunekit.benchmark.competition import Competitor, error_of, seconds_in_turn, split_by_rightness
from prunekit.benchmark.engines.precisions import FLOAT32
from prunekit.benchmark.entrants import PRUNEKIT_INT8, build_competitors, expected_labels
from prunekit.benchmark.machine import Machine, Peak
from prunekit.benchmark.memory import Memory, measure_memory
from prunekit.benchmark.peers import EAGER, PEERS
from prunekit.benchmark.problems import NETS, Problem, layer_problems, whole_net
from prunekit.benchmark.rows import Row, append_rows, latest, read_rows
from prunekit.benchmark.settings import Settings
from prunekit.environment import thread_count
from prunekit.files import check_writable_file
from prunekit.progress import Description, Progress
from prunekit.timing import Timing

T = TypeVar("T")

# Interquartile range over median. With nothing else running, a net of 4 ms spread by 4 to 8 % in most engines; where
# five processes shared two cores, one of 100 ms spread by 25 to 40 %.
_QUIET_SPREAD = 0.15
_OF_THE_COMPETITOR = ("kind", "precision", "ratio", "density", "kept_macs", "weight_bytes", "choices")
# Two virtual cores of a Zen 4 took 4 to 5 ns on one cache of the third level and 15 on two.
_NEAR_NS = 9.0


@dataclass(frozen=True)
class Group:
    """A problem at one number of threads, on one machine."""

    settings: Settings
    machine: Machine
    model: str
    threads: int
    image_size: int
    problem: Problem

    @property
    def facts(self) -> dict[str, Any]:
        """Return what its rows have in common, but for the run."""
        return {
            "question": self.settings.question,
            **asdict(self.machine),
            "threads": self.threads,
            "model": self.model,
            "width": self.settings.width,
            "image_size": self.image_size,
            "structure": self.settings.structure,
            "layer": self.problem.layer,
            "count": self.problem.count,
        }

    @property
    def title(self) -> str:
        """Return its name for people."""
        layer = f", {self.problem.layer}" if self.problem.layer else ""
        return f"{self.model}{layer}, {self.threads} thread{'s'[: self.threads > 1]}"


def run_bench(settings: Settings, out: Path | None, progress: Progress) -> list[Row]:
    """Measure what `settings` asks for, and add the rows to `out`, a group at a time.

    Args:
        settings: what to measure.
        out: JSON lines; groups that are there are not measured again. None: nothing is written.
        progress: follows the groups and, inside, the timed turns.

    Returns:
        The rows of all groups, measured now or found.

    Raises:
        InputError: `out` cannot be used.
        RuntimeError: torch eager itself could not be timed, so there is nothing to compare with.
    """
    if out is not None:
        check_writable_file(out, "--out")
    progress = _SaidOnce(progress)
    rows = [] if out is None else read_rows(out)
    machine = Machine.here()
    groups = _groups(settings, machine)
    results: list[Row] = []
    for group in progress.track(groups, settings.question, len(groups)):
        found = finished_rows(group, rows)
        if found:
            progress.message(f"{group.title}: measured on {found[0].date}, not again")
        else:
            with thread_count(group.threads):
                found = measure_group(group, progress)
            if out is not None:
                append_rows(out, found)
        results += found
    _judge_quiet(results, progress)
    return results


class _SaidOnce:
    """Follows a job as another `Progress` does, without its repeats: an engine is missing for every layer alike."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._said = progress, set[str]()

    def track(self, items: Iterable[T], description: Description, total: int) -> Iterator[T]:
        """Yield `items`, of which there are `total`."""
        return self._progress.track(items, description, total)

    def message(self, text: str) -> None:
        """Show a line that was not shown before."""
        if text not in self._said:
            self._said.add(text)
            self._progress.message(text)


def finished_rows(group: Group, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the last run of a group if it has all that is asked for, else nothing."""
    same = [row for row in rows if all(getattr(row, name) == value for name, value in group.facts.items())]
    last = latest(same)
    have = {row.label for row in last} | {label for row in last for label in row.not_timed}
    settings = group.settings
    is_long_enough = all(row.runs >= settings.runs for row in last)
    has_memory = not settings.memory or all(row.serving_mib is not None for row in last)
    return last if expected_labels(settings) <= have and is_long_enough and has_memory else []


def measure_group(group: Group, progress: Progress) -> list[Row]:
    """Build all competitors, check them, time them in turn, check them again."""
    load = os.getloadavg()[0]
    peak = Peak.measure()
    with torch.no_grad():
        competitors, not_timed = build_competitors(group.problem, group.settings, group.title, progress)
    with torch.inference_mode():
        errors, wrong = split_by_rightness(competitors, progress)
        timed = [competitor for competitor in competitors if competitor.label in errors]
        seconds = seconds_in_turn({c.label: c.call for c in timed}, group.settings.runs, progress)
        for competitor in timed:  # a buffer that is overwritten shows only now
            found = error_of(competitor)
            if isinstance(found, str):
                wrong[competitor.label] = found
                progress.message(f"{competitor.label}: its timing is dropped, {found}")
    not_timed |= wrong
    timed = [competitor for competitor in timed if competitor.label not in wrong]
    if PEERS[EAGER].name not in {competitor.label for competitor in timed}:
        raise RuntimeError(f"{group.title}: {PEERS[EAGER].name} was not timed ({not_timed}): nothing to compare with")
    best_peak = peak.best(Peak.measure())
    memory = _memory(group, timed, progress)
    common = {**group.facts, "load": load, "not_timed": not_timed}
    return _rows(common, timed, errors, seconds, best_peak, memory)


def _judge_quiet(rows: Sequence[Row], progress: Progress) -> None:
    """Say it when the timings spread as they do not on a machine that has nothing else to do."""
    restless = [row for row in rows if row.spread > _QUIET_SPREAD]
    if restless:
        progress.message(
            f"the machine was not quiet: {len(restless)} of {len(rows)} timings spread by more than "
            f"{_QUIET_SPREAD:.0%}, one by {max(row.spread for row in restless):.0%}"
        )
    shared = max((row.shared_write_ns for row in rows if row.shared_write_ns is not None), default=0.0)
    if shared > _NEAR_NS:
        progress.message(
            f"the cores did not share a cache all the time: writing what another core has read took {shared:.0f} ns a "
            f"cache line, where cores that do take up to {_NEAR_NS:.0f}; timings of several threads depend on it"
        )


def _groups(settings: Settings, machine: Machine) -> list[Group]:
    groups = []
    for model in settings.models:
        size = settings.image_size or NETS[model].image_size
        if settings.question == "layers":
            problems = layer_problems(model, size, settings.width, settings.structure)
        else:
            problems = [whole_net(model, size, settings.width, settings.structure)]
        groups += [
            Group(settings, machine, model, threads, size, problem)
            for threads in settings.threads
            for problem in problems
        ]
    return groups


def _memory(group: Group, competitors: Sequence[Competitor], progress: Progress) -> dict[str, Memory]:
    """Return what could be measured; a process that failed is told of, and costs nobody the timing."""
    found: dict[str, Memory] = {}
    if not group.settings.memory:
        return found
    for competitor in progress.track(competitors, "memory, a process each", len(competitors)):
        key = next((key for key, peer in PEERS.items() if peer.name == competitor.name), competitor.kind)
        key = PRUNEKIT_INT8 if competitor.name == PRUNEKIT_INT8 else key
        try:
            found[competitor.label] = measure_memory(
                group.model, key, competitor.ratio, group.image_size, group.settings.width, group.threads,
                group.settings.structure,
            )  # fmt: skip
        except RuntimeError as error:
            progress.message(f"{competitor.label}: {error}")
    return found


def _rows(
    facts: Mapping[str, Any],
    competitors: Sequence[Competitor],
    errors: Mapping[str, float],
    seconds: Mapping[str, Sequence[float]],
    peak: Peak,
    memory: Mapping[str, Memory],
) -> list[Row]:
    """Put everything together; the date is the run's end."""
    medians = {c.label: Timing.of(seconds[c.label]).median_ms for c in competitors}
    peers = sorted((c for c in competitors if c.kind == "peer"), key=lambda peer: medians[peer.label])
    fastest = next(peer.label for peer in peers if peer.precision == FLOAT32)
    fastest_any = peers[0].label
    common: dict[str, Any] = {
        "run": uuid.uuid4().hex[:12],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **facts,
        "against": fastest,
        "against_any": fastest_any,
        **asdict(peak),
    }
    return [
        Row(
            **common,
            **_figures(c, seconds[c.label], peak),
            relative_rms=errors[c.label],
            speedup=medians[fastest] / medians[c.label],
            speedup_over_any=medians[fastest_any] / medians[c.label],
            speedup_over_eager=medians[PEERS[EAGER].name] / medians[c.label],
            **(asdict(memory[c.label]) if c.label in memory else {}),
        )
        for c in competitors
    ]


def _figures(competitor: Competitor, seconds: Sequence[float], peak: Peak) -> dict[str, Any]:
    """Return what one competitor is and what its own timing says."""
    timing = Timing.of(seconds)
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    flops = 2 * competitor.kept_macs
    gflops = flops / timing.median_ms / 1e6
    return {
        "competitor": competitor.name,
        **{name: getattr(competitor, name) for name in _OF_THE_COMPETITOR},
        "runs": len(seconds),
        **asdict(timing),
        "spread": float((high - low) / middle),
        "gflops": gflops,
        "percent_of_peak": 100 * gflops / peak.peak_gflops,
        "bound_ms": max(flops / peak.peak_gflops, competitor.weight_bytes / peak.stream_gb_per_s) / 1e6,
    }
