"""accelerate's first choice: the whole network on the engine, with a row of the report for each convolution."""

from __future__ import annotations

import inspect
import keyword
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunekit.engine.batches import check_batch, has_free_batch
from prunekit.engine.capture import CaptureError, capture, capture_any_size
from prunekit.engine.fusing import fuse
from prunekit.engine.graph import CONVOLUTIONS, Graph, Node
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.signature import Signature
from prunekit.engine.tuning import TunedConv, tune
from prunekit.engine.tuning_cache import TuningCache
from prunekit.nn.acceleration_report import LayerReport
from prunekit.nn.fusion import has_foreign_hooks
from prunekit.ops import native
from prunekit.structure import Structure, flatten

_PROFILES = 3
# Kept weights of an output channel and channel block below which starting the loops costs as much as running them.
_SHORT_LOOP = 8
_STREAM_BYTES = 64 * 2**20


@dataclass(frozen=True)
class WholeGraph:
    """A model on the engine.

    Attributes:
        model: The result, not yet compared with the original.
        batch_norms_folded: How many went into convolutions.
        tuned: What was chosen for each convolution, by its node's name.
        seconds: The choice took.
        notes: About the tuning cache, and which operators torch runs.
        exact, rounded: Where weights were rounded, the same graph with float32 weights before and after that, to
            compare with; else None.
    """

    model: AcceleratedModel
    batch_norms_folded: int
    tuned: dict[str, TunedConv]
    seconds: float
    notes: list[str]
    exact: AcceleratedModel | None = None
    rounded: AcceleratedModel | None = None


def build_whole_graph(
    model: nn.Module,
    inputs: Sequence[Tensor],
    seconds: float,
    cache: TuningCache,
    progress: Callable[[int, int], None],
    weight_dtype: torch.dtype = torch.float32,
    signature: Signature | None = None,
    *,
    copies_inputs: bool = False,
) -> WholeGraph:
    """Capture, fuse, round the convolutions' weights to `weight_dtype`, tune.

    Args:
        model: a copy, in eval mode; its weights are shared with the result.
        inputs: the tensors of its call, in the signature's order.
        seconds: for tuning.
        cache: of choices of earlier runs.
        progress: called with (convolution shapes tuned, all of them).
        weight_dtype: of the kept weights.
        signature: how the model is called and what it returns; None: `inputs` are its positional arguments.
        copies_inputs: whether the forward writes into its inputs, so that it is to be given copies.

    Raises:
        CaptureError: the model cannot run on the engine; the message is why, without a full stop.
        WrongOutputError: a kernel differs from torch's convolution.
    """
    if not native.is_available():
        raise CaptureError("the compiled extension is not there")
    if any(x.dtype == torch.float64 for x in inputs if x.dim() == 4):
        raise CaptureError("the engine computes in float32")
    check_hooks(model)
    graph, shapes = _captured(model, inputs, signature, copies_inputs), [list(x.shape) for x in inputs]
    folded = fuse(graph)
    graph.compress()
    if not any(node.op == "conv2d" for node in graph.nodes):
        raise CaptureError("no float32 convolution was found")
    exact = rounded = None
    if weight_dtype != torch.float32:
        exact, graph = AcceleratedModel(graph, {}, shapes, signature), graph.with_weights(weight_dtype)
        rounded = AcceleratedModel(graph.with_weights(torch.float32), {}, shapes, signature)
    begin = time.perf_counter()
    tuned = tune(graph, cache, seconds, progress)
    elapsed = time.perf_counter() - begin
    fast = AcceleratedModel(graph, {name: t.choice for name, t in tuned.items()}, shapes, signature)
    foreign = foreign_operators(graph)
    notes = [note for note in (cache.note, foreign and f"torch runs {foreign}") if note]
    return WholeGraph(fast, folded, tuned, elapsed, notes, exact, rounded)


def check_hooks(model: nn.Module, runner: str = "the engine") -> None:
    """Raise CaptureError where a module has a hook, which `runner` would not run."""
    for name, module in model.named_modules():
        if has_foreign_hooks(module):
            who = f"module {name}" if name else "the model"
            kind = "forward hooks" if module._forward_hooks or module._forward_pre_hooks else "backward hooks"
            raise CaptureError(f"{who} has {kind}, which {runner} does not run")


def _captured(model: nn.Module, inputs: Sequence[Tensor], signature: Signature | None, copies_inputs: bool) -> Graph:
    if signature is not None and isinstance(model, fx.GraphModule):
        model = _Held(model)
    context: AbstractContextManager[list[Structure]] = nullcontext([])
    if signature is not None:
        context = on_tensors(model, signature, copies_inputs)
    with context as results:
        graph, shapes = capture_any_size(model, inputs), [list(x.shape) for x in inputs]
        if signature is not None and any(signature.results.differs_from(result) for result in results):
            # A result that is no tensor, as a size returned as an int, is part of no graph.
            graph = capture(model, inputs)
            difference = signature.results.differs_from(results[-1])
            if difference:
                raise CaptureError(f"what the model returns changes while it is captured: {difference}")
        if not has_free_batch(graph, shapes) and check_batch(model, inputs):
            graph.split_batch = len(inputs[0])
    return graph


class _Held(nn.Module):
    """A graph module inside another: torch.export interprets the graph of a lone one, whatever its forward is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@contextmanager
def on_tensors(model: nn.Module, signature: Signature, copies_inputs: bool) -> Iterator[list[Structure]]:
    """Let the model's forward take the tensors of its arguments and return a tuple of those of its results.

    torch.export knows no other classes than those that were registered with it. Modules keep their names.

    Yields:
        A list that each run adds the structure of its results to.
    """
    forward, own = model.forward, vars(model).get("forward")
    results: list[Structure] = []

    def called(*tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = signature.call([x.clone() for x in tensors] if copies_inputs else tensors)
        outputs, structure = flatten(forward(*args, **kwargs))
        results.append(structure)
        return tuple(outputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = _identifiers(signature.names)
    called.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    replaced: Any = model
    replaced.forward = called
    try:
        yield results
    finally:
        del replaced.forward
        if own is not None:
            replaced.forward = own


def _identifiers(names: Sequence[str]) -> list[str]:
    """Make names of parameters out of `images[0]` and the like, no two the same."""
    made: list[str] = []
    for name in names:
        plain = "".join(c if c.isalnum() else "_" for c in name).strip("_")
        plain = plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"x_{plain}"
        made.append(plain if plain not in made else f"{plain}_{len(made)}")
    return made


def foreign_operators(graph: Graph) -> str:
    """Return the names of the operators that torch runs."""
    return ", ".join(sorted({n.attributes["target"] for n in graph.nodes if not n.is_native} - {"getitem", "constant"}))


def layer_reports(
    fast: AcceleratedModel,
    args: Sequence[Any],
    peak_gflops: float,
    kwargs: Mapping[str, Any] | None = None,
    noise: Mapping[str, float] | None = None,
) -> tuple[list[LayerReport], dict[str, float]]:
    """Return a row for each convolution, and the milliseconds of everything else by kind.

    `noise` is the signal to noise of convolutions by their nodes' names, where it was measured.
    """
    best: list[float] = []
    for _ in range(_PROFILES):
        steps = fast.profile(*args, **(kwargs or {}))
        best = [min(a, b.ms) for a, b in zip(best or [float("inf")] * len(steps), steps, strict=True)]
    nodes = {node.name: node for node in fast.graph.nodes}
    ms: dict[str, float] = defaultdict(float)
    other: dict[str, float] = defaultdict(float)
    for step, step_ms in zip(steps, best, strict=True):
        node = nodes.get(step.node or "")
        if node is not None and node.op in CONVOLUTIONS:
            ms[node.name] += step_ms
        else:
            other[node.op if node is not None else step.kind] += step_ms
    bandwidth = stream_gbytes()
    rows = [_row(fast, node, ms[node.name], peak_gflops, bandwidth) for node in fast.graph.convolutions()]
    rows = [
        replace(row, signal_to_noise=(noise or {}).get(node.name))
        for row, node in zip(rows, fast.graph.convolutions(), strict=True)
    ]
    return rows, dict(other)


def _row(fast: AcceleratedModel, node: Node, ms: float, peak_gflops: float, bandwidth: float) -> LayerReport:
    graph = fast.graph
    weight, size, output = graph.weights[node.attributes["weight"]], graph.sizes[node.inputs[0]], graph.sizes[node.name]
    kept_macs = weight.values.numel() * output[1] * output[2]
    elements = size[0] * size[1] * size[2] + len(node.inputs) * output[0] * output[1] * output[2]
    is_int8 = node.op == "quantized_conv2d"
    peak_gflops *= max(native.quad_layout().rate, 1) if is_int8 else 1
    num_bytes = (2 + weight.values.element_size()) * weight.values.numel() + (1 if is_int8 else 4) * elements
    choice = next((s.plan.choices[node.name] for s in fast.segments() if node.name in s.plan.choices), None)
    floors = {"multiply-adds": 2 * kept_macs / peak_gflops / 1e6, "memory": num_bytes / bandwidth / 1e6}
    blocks = -(-weight.shape[1] // choice.channel_block) if choice else 1
    limit, advice = _limit(ms, floors, weight.values.numel() / max(1, weight.shape[0] * blocks))
    return LayerReport(
        name=node.layer or node.name,
        input_shape=(1, *size),
        weight_shape=weight.shape,
        density=weight.density,
        implementation=str(choice) if choice else "rule of thumb",
        dense_ms=None,
        sparse_ms=None,
        reason="whole graph",
        ms=ms,
        kept_macs=kept_macs,
        num_bytes=num_bytes,
        percent_of_peak=100 * floors["multiply-adds"] / max(ms, 1e-9),
        limit=limit,
        advice=advice,
        precision="int8" if is_int8 else "float32",
        scale=node.attributes["input"].scale if is_int8 else None,
        zero_point=node.attributes["input"].zero_point if is_int8 else None,
    )


def _limit(ms: float, floors: dict[str, float], kept_a_loop: float) -> tuple[str, str]:
    """Name what bounds a layer: a floor that is half of its time, or what the kernel does beside it."""
    if floors["multiply-adds"] >= max(0.5 * ms, floors["memory"]):
        return "multiply-adds", "more zeros"
    if floors["memory"] >= 0.5 * ms:
        return "memory", "fewer channels or smaller images: zeros do not shrink what is read and written"
    if kept_a_loop < _SHORT_LOOP:
        return "short loops", "fewer output channels (filter pruning): each has only a few weights left"
    return "loads", "more zeros: each multiply-add waits for its input from the caches"


def stream_gbytes() -> float:
    """Measure 10^9 bytes a second, read and written, of copying 64 MiB."""
    x = torch.zeros(_STREAM_BYTES // 8)
    y = torch.empty_like(x)
    best = float("inf")
    for _ in range(_PROFILES + 1):
        begin = time.perf_counter()
        y.copy_(x)
        best = min(best, time.perf_counter() - begin)
    return 2 * x.numel() * x.element_size() / best / 1e9
