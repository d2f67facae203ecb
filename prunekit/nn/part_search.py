"""The submodules that go on the engine where the whole model cannot: those that a user names, or the largest that can.

Each is captured on the calls that it really receives when the model runs on the example, compared with itself on all of
them, and stays on the engine where that measured faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from prunekit.comparison import Comparison
from prunekit.discontinuous import check_same
from prunekit.engine.capture import CaptureError
from prunekit.engine.model import AcceleratedModel
from prunekit.errors import InputError, WrongOutputError
from prunekit.nn.acceleration_report import PartReport
from prunekit.nn.calls import Call
from prunekit.nn.fusion import is_plain_convolution
from prunekit.nn.masked_conv2d import MaskedConv2d
from prunekit.nn.parts import PartCalls, put_on_engine, record_calls
from prunekit.timing import time_in_turn

# Interleaved runs of each call of a part: as many as fit into this time, and enough for a median.
_SECONDS_OF_RUNS, _MIN_RUNS, _MAX_RUNS = 0.5, 5, 21
# A graph that is bound to sizes is captured again for each of the first sizes that a part is called with.
_MAX_ENGINES = 6
# A failed capture takes 0.1 s for a block and 3 s for a detector; a search that finds nothing ends here.
_MAX_TRIALS = 60

#: Makes an engine of a module for a call, tuned for so many seconds; it raises CaptureError where that cannot be.
Build = Callable[[nn.Module, Call, float], AcceleratedModel]


@dataclass
class Parts:
    """Submodules of a model that are on the engine, and those that were tried.

    Attributes:
        engines: Each part's, by its name; the first is that of the calls that take longest.
        reports: Of every submodule that was tried, in the order of trials.
        calls: That each part on the engine received.
    """

    engines: dict[str, list[AcceleratedModel]] = field(default_factory=dict)
    reports: list[PartReport] = field(default_factory=list)
    calls: dict[str, PartCalls] = field(default_factory=dict)

    def drop(self, name: str, note: str) -> None:
        """Note that a part was taken off the engine."""
        del self.engines[name], self.calls[name]
        self.reports = [
            report if report.name != name else PartReport(name, "own code", report.calls, notes=[note])
            for report in self.reports
        ]


@dataclass(frozen=True)
class Trial:
    """A submodule on engines that answer as it does.

    Attributes:
        engines: One for all sizes, or several.
        compared: With the submodule itself.
        before_ms, after_ms: Of all calls of one run of the model.
        notes: About the comparison.
    """

    engines: list[AcceleratedModel]
    compared: Comparison
    before_ms: float
    after_ms: float
    notes: list[str]


class PartSearch:
    """Puts submodules of a model on the engine, in place.

    Args:
        model: a frozen copy in eval mode that nobody else uses.
        run: calls the model it is given on the example.
        build: makes an engine of a submodule.
        seconds: for tuning all of them.
        search_seconds: of the processor; after these no further submodule is tried.
    """

    def __init__(
        self, model: nn.Module, run: Callable[[nn.Module], object], build: Build, seconds: float, search_seconds: float
    ) -> None:
        self.model, self.run, self.build = model, run, build
        self.seconds, self.end = seconds, time.process_time() + search_seconds
        self.found, self.tried = Parts(), 0
        self.total = max(1, _num_convolutions(model))

    def put_named(self, names: Sequence[str]) -> Parts:
        """Put the named submodules on the engine; one inside another only where that one is not on it."""
        waiting = list(names)
        while waiting:
            outer = [name for name in waiting if not any(name.startswith(f"{other}.") for other in waiting)]
            calls = record_calls(self.model, outer, self.run)
            for name in outer:
                self._try(name, calls[name])
            waiting = [name for name in waiting if name not in outer]
        return self.found

    def put_largest(self) -> Parts:
        """Put the largest submodules on the engine that can be there: a child, or else its children, and so on."""
        seen: set[int] = set()
        names = _children(self.model, "", seen)
        while names:
            calls = record_calls(self.model, names, self.run)
            deeper = []
            for name in names:
                if self.tried >= _MAX_TRIALS or time.process_time() > self.end:
                    self.found.reports.append(
                        PartReport(name, "own code", sum(calls[name].counts), notes=["the search took too long"])
                    )
                elif not calls[name].calls or not self._try(name, calls[name]):
                    deeper += _children(self.model.get_submodule(name), f"{name}.", seen)
            names = deeper
        return self.found

    def _try(self, name: str, calls: PartCalls) -> bool:
        """Put a submodule on the engine; return False where its children are to be tried."""
        count = sum(calls.counts) + calls.left_out
        if not calls.calls:
            note = (
                "the model calls it with what cannot be described" if count else "the model did not call it by itself"
            )
            self.found.reports.append(PartReport(name, "own code", count, notes=[note]))
            return False
        self.tried += 1
        module = self.model.get_submodule(name)
        try:
            trial = self._trial(name, module, calls)
        except (CaptureError, WrongOutputError, InputError) as error:
            note = str(error).strip().removesuffix(".")
            self.found.reports.append(PartReport(name, "own code", count, notes=[note]))
            return False
        times = trial.before_ms, trial.after_ms
        if trial.after_ms >= trial.before_ms:
            notes = ["its own code was measured faster"]
            self.found.reports.append(PartReport(name, "own code", count, *times, trial.compared, notes))
            return True
        put_on_engine(module, trial.engines)
        self.found.engines[name], self.found.calls[name] = trial.engines, calls
        self.found.reports.append(PartReport(name, "whole graph", count, *times, trial.compared, trial.notes))
        return True

    def _trial(self, name: str, module: nn.Module, calls: PartCalls) -> Trial:
        seconds = self.seconds * _num_convolutions(module) / self.total
        engines: list[AcceleratedModel] = []
        compared, notes = Comparison(inputs=0), []
        for call in calls.by_size():
            engine = find_engine(engines, call)
            if engine is None and len(engines) < _MAX_ENGINES:
                engine = self.build(module, call, seconds / (1 + len(engines)))
                engines.append(engine)
            if engine is None:
                notes.append(f"calls of {call.words} are left to its own code")
                continue
            own, fast = partial(call.run, module), partial(call.run, engine)
            same = check_same(own(), own, fast, f"{name} on the engine")
            compared += same.comparison
            if same.operators:
                notes.append(f"compared with the decisions of {', '.join(same.operators)} shared")
        return Trial(engines, compared, *_times(module, engines, calls), list(dict.fromkeys(notes)))


def find_engine(engines: Sequence[AcceleratedModel], call: Call) -> AcceleratedModel | None:
    """Return the first engine that runs on a call, or None."""
    for engine in engines:
        try:
            call.run(engine)
        except InputError:
            continue
        return engine
    return None


def _times(module: nn.Module, engines: Sequence[AcceleratedModel], calls: PartCalls) -> tuple[float, float]:
    """Return the milliseconds of all calls in one run of the model: of the module's own code, and on the engine."""
    before = after = 0.0
    for call, count in zip(calls.calls, calls.counts, strict=True):
        engine = find_engine(engines, call)
        if engine is not None:
            both = {"before": partial(call.time, module), "after": partial(call.time, engine)}
            seconds = sum(timing.median_ms for timing in time_in_turn(both, 1, warm_up=1).values()) / 1e3
            runs = int(min(max(_SECONDS_OF_RUNS / max(seconds, 1e-6), _MIN_RUNS), _MAX_RUNS))
            times = time_in_turn(both, runs, warm_up=0)
            before += count * times["before"].median_ms
            after += count * times["after"].median_ms
    return before, after


def _children(module: nn.Module, prefix: str, seen: set[int]) -> list[str]:
    """Return the names of those children that are worth a trial, and were not met before."""
    names = []
    for name, child in module.named_children():
        is_part = not is_plain_convolution(child) and not isinstance(child, MaskedConv2d) and _num_convolutions(child)
        if is_part and id(child) not in seen:
            seen.add(id(child))
            names.append(prefix + name)
    return names


def _num_convolutions(module: nn.Module) -> int:
    return sum(parameter.dim() == 4 for parameter in module.parameters())
