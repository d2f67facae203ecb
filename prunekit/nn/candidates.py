"""The ways to run a model that accelerate tries: each compared, then all timed in turn, and the fastest returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from prunekit.comparison import Comparison
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.tuning_cache import TuningCache
from prunekit.nn.acceleration_report import AccelerationReport, LayerReport
from prunekit.nn.calls import Call
from prunekit.nn.model_copies import OriginalModel, copied, first_line, has_computed_weights, with_plain_weights
from prunekit.nn.packed_layers import given_back, pack_layers
from prunekit.nn.reference import NotComparable, Reference, without_autocast
from prunekit.nn.whole_graph import WholeGraph, build_whole_graph, layer_reports
from prunekit.ops import native, native_status
from prunekit.timing import Timing, time_in_turn

# Interleaved runs of each candidate: as many as fit into a second, and enough for a median that a busy machine does not
# turn around.
_SECONDS_OF_RUNS, _MIN_RUNS, _MAX_RUNS = 1.0, 5, 31
# Below this speed-up of the whole graph the model's own forward is tried on packed filters too.
_CLEARLY_FASTER = 1.4


@dataclass(frozen=True)
class Options:
    """What `accelerate` was asked for; see there."""

    whole_graph: bool = True
    weight_dtype: torch.dtype = torch.float32
    tuning_seconds: float = 60.0
    tuning_cache: Path | Literal["default"] | None = "default"
    progress: Callable[[int, int], None] | None = None

    def cache(self) -> TuningCache:
        """Open the cache of choices."""
        if self.tuning_cache == "default":
            return TuningCache.default()
        return TuningCache(self.tuning_cache and Path(self.tuning_cache))


@dataclass
class Candidate:
    """One way to run the model, found right: what is returned if it is the fastest."""

    model: nn.Module
    engine: str
    comparison: Comparison
    rows: list[LayerReport] = field(default_factory=list)
    batch_norms_folded: int = 0
    built: WholeGraph | None = None


def fastest(model: nn.Module, runs: nn.Module, reference: Reference, options: Options) -> nn.Module:
    """Build what can be built, compare it, time what is right, and return the fastest with its report."""
    example, notes = reference.example, list(reference.notes)
    peak = native.fma_peak_gflops() if native.is_available() else 0.0
    same = reference.difference(lambda call: call.run(runs))
    candidates = {"own": Candidate(model, "the model's own", same)}
    if options.whole_graph:
        graph = _attempt("not run as a whole graph", notes, lambda: _whole_graph(model, reference, options))
        if graph is not None:
            candidates["graph"] = graph
    calls = {"own": lambda: example.time(runs)}
    if "graph" in candidates:
        fast = candidates["graph"].model
        calls["graph"] = lambda: example.time(fast)
    times = _time(calls)
    if "graph" not in times or times["own"].median_ms < _CLEARLY_FASTER * times["graph"].median_ms:
        if options.weight_dtype != torch.float32:
            notes.append("weights stay float32 outside the engine")
        modules = _attempt("no layer was replaced", notes, lambda: _modules(model, reference, notes))
        if modules is not None and modules.engine == "modules":
            candidates["modules"] = modules
            trial = copied(modules.model)
            times = _time({**calls, "modules": lambda: example.time(trial)})
        elif modules is not None:
            candidates["own"] = modules
    best = min(candidates, key=lambda name: (times[name].median_ms, name == "own", name == "modules"))
    chosen = candidates[best]
    notes += _why(best, candidates)
    if best == "own" and "modules" in candidates:
        chosen.rows = given_back(candidates["modules"].rows, "given back: the model as a whole measured faster")
    if chosen.built is not None:
        notes += chosen.built.notes
    report = _report(chosen, times, best, notes)
    if best == "graph" and isinstance(chosen.model, AcceleratedModel):
        report = _with_layers(report, chosen.model, example, peak)
    chosen.model.report = report  # type: ignore[assignment]
    return chosen.model


def left_alone(model: nn.Module, runs: nn.Module, example: Call, note: str) -> nn.Module:
    """Return `model` as it is, with a report of why; `runs` is a copy of it to be timed."""
    times = _time({"own": lambda: example.time(runs)})
    own = Candidate(model, "the model's own", Comparison(inputs=0))
    model.report = _report(own, times, "own", [note])  # type: ignore[assignment]
    return model


def uncopied(model: nn.Module, example: Call, note: str) -> OriginalModel:
    """Return a wrapper around a model that cannot be copied; it is not run, since that might change it."""
    wrapper = OriginalModel(model)
    nothing = {"own": Timing(0.0, 0.0, 0.0)}
    wrapper.report = _report(Candidate(wrapper, "the model's own", Comparison(inputs=0)), nothing, "own", [note])
    return wrapper


def _whole_graph(model: nn.Module, reference: Reference, options: Options) -> Candidate:
    """Put the model on the engine and compare; whatever raises is why that cannot be."""
    example = reference.example
    source = reference.float32 if reference.float32 is not None else model
    plain = with_plain_weights(source) if has_computed_weights(source) else copied(source)
    inputs = [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in example.tensors]
    with without_autocast():
        built = build_whole_graph(
            plain,
            inputs,
            options.tuning_seconds,
            options.cache(),
            options.progress or (lambda done, total: None),
            options.weight_dtype,
            example.signature,
            copies_inputs=example.is_written,
        )
    exact, rounded, fast = built.exact, built.rounded, built.model
    if exact is None or rounded is None:
        comparison = reference.check(lambda call: call.run(fast))
    else:
        reference.check(lambda call: call.run(exact))
        answers = [call.run(rounded) for call in reference.calls]
        Reference(reference.calls, answers, answers, torch.float32).check(lambda call: call.run(fast))
        comparison = reference.difference(lambda call: call.run(fast))
    if example.is_written:
        built.notes.append("the model writes into its input; the accelerated one leaves it as it is")
    return Candidate(fast, "whole graph", comparison, [], built.batch_norms_folded, built)


def _modules(model: nn.Module, reference: Reference, notes: list[str]) -> Candidate:
    if reference.is_half:
        raise NotComparable(
            f"layers of a model that computes in {str(reference.dtype).removeprefix('torch.')} run in torch"
        )
    plain = with_plain_weights(model) if has_computed_weights(model) else model
    packed = pack_layers(plain, reference)
    notes += [note for note in (native_status().reason, *packed.notes) if note]
    engine = "modules" if packed.replaced else "the model's own"
    fast = packed.model if packed.replaced else model
    return Candidate(fast, engine, packed.comparison, packed.rows, packed.batch_norms_folded)


def _attempt(what: str, notes: list[str], build: Callable[[], Candidate]) -> Candidate | None:
    try:
        return build()
    except Exception as error:  # foreign forwards, torch.export and kernels may raise anything
        notes.append(f"{what}: {first_line(error)}")
        return None


def _why(best: str, candidates: Mapping[str, Candidate]) -> list[str]:
    if best == "modules" and "graph" in candidates:
        return ["the model's own forward was measured faster than the whole graph"]
    if best == "own" and len(candidates) > 1:
        others = {"graph": "the whole graph", "modules": "its layers on packed filters"}
        slower = " and ".join(words for name, words in others.items() if name in candidates)
        return [f"the model itself was measured faster than {slower}"]
    return []


def _time(calls: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
    first = time_in_turn(calls, 1, warm_up=1)
    seconds = sum(timing.median_ms for timing in first.values()) / 1e3
    runs = int(min(max(_SECONDS_OF_RUNS / max(seconds, 1e-6), _MIN_RUNS), _MAX_RUNS))
    return time_in_turn(calls, runs, warm_up=1)


def _report(chosen: Candidate, times: Mapping[str, Timing], best: str, notes: list[str]) -> AccelerationReport:
    return AccelerationReport(
        rows=chosen.rows,
        threads=torch.get_num_threads(),
        instruction_set=native_status().instruction_set,
        batch_norms_folded=chosen.batch_norms_folded,
        before_ms=times["own"].median_ms,
        after_ms=times[best].median_ms,
        relative_rms=chosen.comparison.relative_rms,
        notes=notes,
        engine=chosen.engine,
        tuning_seconds=chosen.built.seconds if chosen.built else 0.0,
        comparison=chosen.comparison,
    )


def _with_layers(
    report: AccelerationReport, fast: AcceleratedModel, example: Call, peak_gflops: float
) -> AccelerationReport:
    """Add the layers' times, or a note where they cannot be measured: the model is right without them."""
    peak = max(peak_gflops, native.fma_peak_gflops())  # another process may have slowed one of the two down
    try:
        args, kwargs = example.signature.call(example.tensors)
        rows, other = layer_reports(fast, args, peak, kwargs)
    except Exception as error:
        return replace(report, notes=[*report.notes, f"the layers were not measured: {first_line(error)}"])
    return replace(report, rows=rows, other_ms=other, peak_gflops=peak)
