"""The ways to run a model that accelerate tries: each compared, then all timed in turn, and the fastest returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from prunekit.comparison import Comparison
from prunekit.engine.capture import CaptureError
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.tuning_cache import TuningCache
from prunekit.errors import WrongOutputError, first_line
from prunekit.nn.accelerate_parts import PartsOnEngine, put_parts
from prunekit.nn.acceleration_report import AccelerationReport, LayerReport
from prunekit.nn.calls import Call
from prunekit.nn.int8 import Inputs, Int8Graph, build_int8
from prunekit.nn.model_copies import OriginalModel, copied, has_computed_weights, with_plain_weights
from prunekit.nn.packed_layers import given_back, pack_layers
from prunekit.nn.reference import NotComparable, Reference, dtype_name, without_autocast
from prunekit.nn.whole_graph import WholeGraph, build_whole_graph, layer_reports
from prunekit.ops import native, native_status
from prunekit.timing import Timing, time_in_turn

# Interleaved runs of each candidate: as many as fit into a second, and enough for a median that a busy machine does not
# turn around.
_SECONDS_OF_RUNS, _MIN_RUNS, _MAX_RUNS = 1.0, 5, 31
# torch.export tries for up to 28 s and fails where values make more shapes than these (SSD: 180 on one image).
_MAX_DYNAMIC = 8
# Below this speed-up of the whole graph the model's own forward is tried on packed filters too.
_CLEARLY_FASTER = 1.4
# Of two that are equally fast, the first.
_PREFERRED = ("int8", "graph", "parts", "modules", "own")


@dataclass(frozen=True)
class Options:
    """What `accelerate` was asked for; see there. int8 is tried where there are `calibration` inputs for it.

    With `only_faster_int8` False it is taken wherever it is possible.
    """

    whole_graph: bool = True
    weight_dtype: torch.dtype = torch.float32
    tuning_seconds: float = 60.0
    tuning_cache: Path | Literal["default"] | None = "default"
    progress: Callable[[int, int], None] | None = None
    parts: tuple[str, ...] | None = None
    calibration: Sequence[Inputs] | None = None
    calibration_method: str = "mse"
    only_faster_int8: bool = True

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
    int8: Int8Graph | None = None
    parts: PartsOnEngine | None = None


def fastest(model: nn.Module, runs: nn.Module, reference: Reference, options: Options) -> nn.Module:
    """Build what can be built, compare it, time what is right, and return the fastest with its report."""
    example, notes = reference.example, list(reference.notes)
    peak = native.fma_peak_gflops() if native.is_available() else 0.0
    same = reference.difference(lambda call: call.run(runs))
    candidates = {"own": Candidate(model, "the model's own", same)}
    if options.whole_graph and options.parts is None:
        graph = _attempt("not run as a whole graph", notes, lambda: on_the_engine(model, reference, options))
        if graph is not None:
            candidates["graph"] = graph
    calls = {"own": lambda: example.time(runs)}
    if "graph" in candidates:
        fast = candidates["graph"].model
        calls["graph"] = lambda: example.time(fast)
        if options.calibration is not None:
            int8 = _attempt("stays float32", notes, lambda: _in_int8(candidates["graph"], reference, options))
            if int8 is not None:
                candidates["int8"], calls["int8"] = int8, lambda: example.time(int8.model)
    elif options.whole_graph:
        parts = _attempt("no part was put on the engine", notes, lambda: _parts(model, reference, options))
        if parts is not None:
            candidates["parts"] = parts
            put = copied(parts.model)
            calls["parts"] = lambda: example.time(put)
    if options.calibration is not None and "graph" not in candidates:
        notes.append("stays float32: int8 is for models that run as one graph")
    times = _time(calls)
    best = _best_of_graphs(times, options)
    # Named parts were each measured faster; a model of which they are a small share may not show it.
    if options.parts is None and not _is_clearly_faster(times):
        _add_modules(candidates, model, reference, options, notes)
        if "modules" in candidates:
            trial = copied(candidates["modules"].model)
            times = _time({**calls, "modules": lambda: example.time(trial)})
        best = min(candidates, key=lambda name: (times[name].median_ms, _PREFERRED.index(name)))
    chosen = candidates[best]
    notes += _why(best, candidates)
    if best == "own" and "modules" in candidates:
        chosen.rows = given_back(candidates["modules"].rows, "given back: the model as a whole measured faster")
    if chosen.built is not None:
        notes += chosen.built.notes
    if chosen.int8 is not None:
        notes += chosen.int8.notes()
    if reference.shared:
        notes.append(
            f"compared with the decisions of {', '.join(reference.shared)} shared: equal scores may change places"
        )
    report = _report(chosen, times, best, notes)
    if chosen.parts is not None:
        report = _with_parts(report, chosen.parts, peak)
    if best in ("graph", "int8") and isinstance(chosen.model, AcceleratedModel):
        report = _with_layers(report, chosen, example, peak)
    chosen.model.report = report  # type: ignore[assignment]
    return chosen.model


def _best_of_graphs(times: Mapping[str, Timing], options: Options) -> str:
    """Return the name of the whole graph that is faster, or of what there is instead of one."""
    names = [name for name in _PREFERRED if name in times]
    if names[0] == "int8" and options.only_faster_int8 and times["graph"].median_ms < times["int8"].median_ms:
        return "graph"
    return names[0]


def _in_int8(graph: Candidate, reference: Reference, options: Options) -> Candidate:
    """Put a whole graph into int8; whatever raises is why not."""
    assert isinstance(graph.model, AcceleratedModel)
    assert graph.built is not None
    example, inputs = reference.example, options.calibration or ()
    tensors = [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in example.tensors]
    int8 = build_int8(
        graph.model, tensors, inputs, options.calibration_method, options.tuning_seconds, options.cache(),
        only_where_faster=options.only_faster_int8,
    )  # fmt: skip
    comparison = reference.difference(lambda call: call.run(int8.model))
    return replace(graph, model=int8.model, comparison=comparison, int8=int8)


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


def on_the_engine(model: nn.Module, reference: Reference, options: Options) -> Candidate:
    """Put the whole model on the engine and compare; whatever raises is why that cannot be."""
    example = reference.example
    if reference.num_dynamic > _MAX_DYNAMIC:
        raise CaptureError(f"values make shapes in {reference.num_dynamic} places, as in a detector's postprocessing")
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


def _parts(model: nn.Module, reference: Reference, options: Options) -> Candidate:
    """Put submodules on the engine, and layers outside of them on packed filters; whatever raises is why not."""
    if reference.is_half:
        raise NotComparable(f"parts of a model that computes in {dtype_name(reference.dtype)} run in torch")
    if not native.is_available():
        raise CaptureError("the compiled extension is not there")
    parts = put_parts(model, reference, options.parts, options.tuning_seconds, options.cache())
    candidate = Candidate(parts.model, "parts" if parts.names else "the model's own", parts.comparison, parts=parts)
    if options.parts is None:
        try:
            packed = pack_layers(parts.model, reference)
        except WrongOutputError:  # what is on the engine is right without it
            return candidate
        if any(row.implementation != "dense" for row in packed.rows):  # rows are those of layers outside of the parts
            candidate = replace(candidate, model=packed.model, comparison=packed.comparison, rows=packed.rows)
    return candidate


def _is_clearly_faster(times: Mapping[str, Timing]) -> bool:
    """Return whether a candidate is so fast that no other needs to be tried."""
    best = min((timing.median_ms for name, timing in times.items() if name != "own"), default=float("inf"))
    return times["own"].median_ms >= _CLEARLY_FASTER * best


def _add_modules(
    candidates: dict[str, Candidate], model: nn.Module, reference: Reference, options: Options, notes: list[str]
) -> None:
    """Try packed layers; where none was faster the model's own candidate takes the rows that say so."""
    if options.weight_dtype != torch.float32:
        notes.append("weights stay float32 outside the engine")
    modules = _attempt("no layer was replaced", notes, lambda: _modules(model, reference, notes))
    if modules is not None:
        candidates["modules" if modules.engine == "modules" else "own"] = modules


def _modules(model: nn.Module, reference: Reference, notes: list[str]) -> Candidate:
    if reference.is_half:
        raise NotComparable(f"layers of a model that computes in {dtype_name(reference.dtype)} run in torch")
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
    if best == "graph" and "int8" in candidates:
        return ["the whole graph was measured faster in float32 than in int8"]
    if best == "modules" and "graph" in candidates:
        return ["the model's own forward was measured faster than the whole graph"]
    if best == "own" and len(candidates) > 1:
        others = {
            "graph": "the whole graph",
            "int8": "the whole graph in int8",
            "parts": "its parts on the engine",
            "modules": "its layers on packed filters",
        }
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


def _with_parts(report: AccelerationReport, parts: PartsOnEngine, peak_gflops: float) -> AccelerationReport:
    """Add the parts, and the rows of their layers, or a note where these cannot be measured."""
    peak = max(peak_gflops, native.fma_peak_gflops())
    try:
        rows = [*parts.layers(peak), *report.rows]
    except Exception as error:
        report = replace(report, notes=[*report.notes, f"the layers were not measured: {first_line(error)}"])
        rows = report.rows
    return replace(report, rows=rows, parts=parts.reports, peak_gflops=peak)


def _with_layers(
    report: AccelerationReport, chosen: Candidate, example: Call, peak_gflops: float
) -> AccelerationReport:
    """Add the layers' times, or a note where they cannot be measured: the model is right without them."""
    peak = max(peak_gflops, native.fma_peak_gflops())  # another process may have slowed one of the two down
    try:
        args, kwargs = example.signature.call(example.tensors)
        assert isinstance(chosen.model, AcceleratedModel)
        rows, other = layer_reports(chosen.model, args, peak, kwargs, chosen.int8.noise if chosen.int8 else None)
    except Exception as error:
        return replace(report, notes=[*report.notes, f"the layers were not measured: {first_line(error)}"])
    return replace(report, rows=rows, other_ms=other, peak_gflops=peak)
