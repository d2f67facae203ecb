"""accelerate for models that the engine cannot run whole: their own class and forward, with parts on the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from prunekit.comparison import Comparison
from prunekit.engine.capture import CaptureError
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.tuning_cache import TuningCache
from prunekit.errors import first_line
from prunekit.nn.acceleration_report import LayerReport, PartReport
from prunekit.nn.calls import Call
from prunekit.nn.model_copies import has_computed_weights, sharing_copy, with_plain_weights
from prunekit.nn.part_search import Parts, PartSearch, find_engine
from prunekit.nn.parts import put_on_engine
from prunekit.nn.reference import Reference
from prunekit.nn.whole_graph import build_whole_graph, layer_reports

# Looking for parts may take as long as tuning, and at least this long: a detector needs 5 to 20 s.
_MIN_SEARCH_SECONDS = 60.0


@dataclass(frozen=True)
class PartsOnEngine:
    """A copy of a model with submodules on the engine, compared with the original as a whole.

    Attributes:
        model: The copy; it was never run.
        names: Of the parts that are on the engine.
        reports: Of every submodule that was tried.
        comparison: Of the whole model.
    """

    model: nn.Module
    names: list[str]
    reports: list[PartReport]
    comparison: Comparison
    _found: Parts

    def layers(self, peak_gflops: float) -> list[LayerReport]:
        """Return a row for each convolution in the parts, measured on the call that takes longest."""
        rows = []
        for name, engines in self._found.engines.items():
            call = next(c for c in self._found.calls[name].by_size() if find_engine(engines[:1], c) is not None)
            args, kwargs = call.signature.call(call.tensors)
            for row in layer_reports(engines[0], args, peak_gflops, kwargs)[0]:
                rows.append(replace(row, name=f"{name}.{row.name}"))
        return rows


def put_parts(
    model: nn.Module, reference: Reference, names: Sequence[str] | None, seconds: float, cache: TuningCache
) -> PartsOnEngine:
    """Put the named submodules on the engine, or the largest that can be there, each where it is right and faster.

    Args:
        model: a frozen copy of the original in eval mode; it is not changed.
        reference: what the result is held to, on top of each part's comparison with itself.
        names: the submodules; None looks for them.
        seconds: for tuning.
        cache: of choices of earlier runs.

    Raises:
        CaptureError: no submodule can be there, or none is faster (`names` is None only).
    """

    def build(module: nn.Module, call: Call, seconds: float) -> AcceleratedModel:
        answered = sharing_copy(module)
        outputs, is_written = call.writes(answered)
        if is_written:
            raise CaptureError("it writes into its arguments")
        plain = with_plain_weights(module) if has_computed_weights(module) else sharing_copy(module)
        signature = call.signature.with_results(outputs)
        return build_whole_graph(plain, call.tensors, seconds, cache, _silent, signature=signature).model

    trial = sharing_copy(model)
    search = PartSearch(trial, reference.example.run, build, seconds, max(seconds, _MIN_SEARCH_SECONDS))
    found = search.put_largest() if names is None else search.put_named(names)
    comparison = _keep_right(model, found, reference)
    if names is None and not found.engines:
        why = "; ".join(f"{report.name}: {'; '.join(report.notes)}" for report in found.reports[-3:])
        raise CaptureError(why or "no submodule has convolutions of its own")
    return PartsOnEngine(_with(model, found.engines), list(found.engines), found.reports, comparison, found)


def _keep_right(model: nn.Module, found: Parts, reference: Reference) -> Comparison:
    """Take parts off the engine until the model as a whole is right: one may do more than return its outputs.

    Raises:
        WrongOutputError: the model is wrong without any part.
    """
    try:
        return _check(model, found.engines, reference)
    except Exception as error:  # a foreign forward may also raise on what a part returns
        if not found.engines:
            raise
        everything = first_line(error)
    for name in list(found.engines):
        try:
            _check(model, {name: found.engines[name]}, reference)
        except Exception as error:
            found.drop(name, f"with it on the engine the model as a whole is wrong ({first_line(error)})")
    try:
        return _check(model, found.engines, reference)
    except Exception:
        for name in list(found.engines):
            found.drop(name, f"with all parts on the engine the model as a whole is wrong ({everything})")
        return _check(model, {}, reference)


def _check(model: nn.Module, engines: Mapping[str, Sequence[AcceleratedModel]], reference: Reference) -> Comparison:
    fast = _with(model, engines)
    return reference.check(lambda call: call.run(fast))


def _with(model: nn.Module, engines: Mapping[str, Sequence[AcceleratedModel]]) -> nn.Module:
    fast = sharing_copy(model)
    for name, some in engines.items():
        put_on_engine(fast.get_submodule(name), some)
    return fast


def _silent(done: int, total: int) -> None:
    pass
