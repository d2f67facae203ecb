"""A graph on a GPU: kernels chosen per convolution, nodes run in order, all of it replayed as one CUDA graph."""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import documents
from prunekit.engine.batches import check_shapes
from prunekit.engine.gpu_nodes import LayerKernel, convolve, run_native
from prunekit.engine.graph import Graph, Node, constants_of
from prunekit.engine.program import run_in_torch
from prunekit.engine.signature import Signature
from prunekit.errors import InputError
from prunekit.ops.cuda.cache import KernelCache
from prunekit.ops.cuda.choice import KernelChoice, dense_seconds
from prunekit.ops.cuda.devices import Gpu
from prunekit.ops.cuda.dispatch import CudaDevice
from prunekit.ops.cuda.packed_filter import PackedFilter
from prunekit.ops.cuda.plan import ConvJob, ConvPlan, Ops, inference_job
from prunekit.ops.cuda.sparse_kernel import cuda_op

# Captured sizes that a model keeps; the one that was used longest ago goes first.
_MAX_SIZES = 8
_WARM_UP_RUNS = 3
# Attributes that GpuModel's constructor makes of its arguments.
_MADE = ("program", "_example", "_formats", "_captured", "_lock")


def choose_layers(
    graph: Graph,
    inputs: Sequence[Tensor],
    device: CudaDevice,
    cache: KernelCache,
    seconds: float,
    progress: Callable[[int, int], None],
    known: Mapping[str, KernelChoice] | None = None,
) -> dict[str, LayerKernel]:
    """Choose a kernel for each convolution: as measured before, else as measured now, else by the model.

    Args:
        graph: fused; where an image of the example is channels-last, its convolutions' weights become so, too.
        inputs: the example; their batch and memory format are what is measured.
        device: where to run.
        cache: of measurements.
        seconds: for measuring; 0 lets the model choose.
        progress: called with (convolutions chosen, all of them).
        known: choices that were made on such a device, by the convolution's name, which come before all.

    Raises:
        WrongOutputError: a kernel computes something else than the dense convolution.
    """
    deadline = time.monotonic() + seconds
    if _has_channels_last(inputs):
        _match_format(graph)
    nodes, kernels = list(graph.convolutions()), {}
    images = [x for x in inputs if x.dim() == 4]
    for done, node in enumerate(nodes):
        x_shape = (len(images[0]) if images else 1, *graph.sizes[node.inputs[0]])
        can_measure = seconds > 0 and time.monotonic() < deadline
        before = (known or {}).get(node.name)
        kernels[node.name] = _choose(node, graph, x_shape, images, device, cache, can_measure, before)
        progress(done + 1, len(nodes))
    cache.save()
    return kernels


def _has_channels_last(inputs: Sequence[Tensor]) -> bool:
    return any(is_channels_last(x) for x in inputs)


def is_channels_last(x: Tensor) -> bool:
    """Tell whether x is an image in this memory format and not in the usual one."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _match_format(graph: Graph) -> None:
    """Bring weights into the images' format, as cuDNN would copy each of them at every call."""
    for node in graph.convolutions():
        name = node.attributes["weight"]
        graph.constants[name] = graph.constants[name].contiguous(memory_format=torch.channels_last)


def _choose(
    node: Node,
    graph: Graph,
    x_shape: tuple[int, ...],
    images: Sequence[Tensor],
    device: CudaDevice,
    cache: KernelCache,
    can_measure: bool,
    known: KernelChoice | None,
) -> LayerKernel:
    a, weight = node.attributes, graph.constants[node.attributes["weight"]]
    job = inference_job(x_shape, weight != 0, a["stride"], a["padding"], a["dilation"], a["groups"])
    if job is None:
        return LayerKernel(KernelChoice("dense", None, 0.0, 0.0, False, "no sparse kernel has such sizes"), None)
    if job.problem.density == 1:
        dense = dense_seconds(job.problem, device.gpu, allow_tf32=device.allow_tf32, dtype=weight.dtype)
        return LayerKernel(KernelChoice("dense", None, dense, dense, False, "it has no zeros"), job.problem)
    choice = known
    if choice is None or not job.takes(choice, weight.dtype, device.gpu):
        choice = job.choose(device.gpu, weight.dtype, allow_tf32=device.allow_tf32, cache=cache)
    if can_measure and not choice.is_measured:
        choice, plan = _measure(job, node, weight, _example(x_shape, images, weight), device, cache)
    else:
        plan = job.pack(device.gpu, choice, weight.device, weight.dtype)
    if plan is None:
        is_sparse = choice.launch is not None
        why = "its packed filter needs more shared memory than a block has" if is_sparse else choice.reason
        return LayerKernel(KernelChoice("dense", None, choice.sparse_seconds, choice.dense_seconds,
                                        choice.is_measured, why), job.problem)  # fmt: skip
    return LayerKernel(choice, job.problem, plan, plan.pattern.fill(weight))


def _example(x_shape: tuple[int, ...], images: Sequence[Tensor], weight: Tensor) -> Tensor:
    x = torch.randn(x_shape, dtype=weight.dtype, device=weight.device)
    return x.contiguous(memory_format=torch.channels_last) if _has_channels_last(images) else x


def _measure(
    job: ConvJob, node: Node, weight: Tensor, x: Tensor, device: CudaDevice, cache: KernelCache
) -> tuple[KernelChoice, ConvPlan | None]:
    a = node.attributes
    filters: dict[int, PackedFilter] = {}

    def run(plan: ConvPlan) -> Tensor:
        filled = filters.setdefault(id(plan.pattern), plan.pattern.fill(weight))
        return plan.run(x, filled, ops=device.ops)

    def dense() -> Tensor:
        return torch.conv2d(x, weight, None, a["stride"], a["padding"], a["dilation"], a["groups"])

    measured = device.seconds_of, cache, device.allow_tf32
    return job.measure(device.gpu, weight.device, weight.dtype, run, dense, *measured)


class GpuProgram:
    """A graph and the kernels of its convolutions; it waits for nothing, so a CUDA graph can capture it."""

    def __init__(
        self, graph: Graph, kernels: Mapping[str, LayerKernel], ops: Ops = cuda_op, gpu: Gpu | None = None
    ) -> None:
        """`ops` gives a sparse kernel's op; convolutions that run on one need no dense weight any more.

        `gpu` is the device that the kernels were chosen for, if that is to be told in a file.
        """
        self.gpu = gpu
        are_needed = {name for node in graph.nodes for name in constants_of(node)}
        are_needed |= {n.attributes["weight"] for n in graph.convolutions() if kernels[n.name].plan is None}
        constants = {name: tensor for name, tensor in graph.constants.items() if name in are_needed}
        for node in graph.nodes:
            if node.op == "affine":  # BatchNorm that no convolution took, kept in float64 until here
                for key in ("scale", "shift"):
                    constants[node.attributes[key]] = constants[node.attributes[key]].float()
        self.graph, self.kernels, self._ops = replace(graph, constants=constants), dict(kernels), ops
        last = {name: node.name for node in graph.nodes for name in node.inputs}
        kept = {*graph.outputs, *graph.inputs}
        self._dead = {
            node.name: [name for name in dict.fromkeys(node.inputs) if last[name] == node.name and name not in kept]
            for node in graph.nodes
        }

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the graph's outputs; what nobody reads any more is freed on the way."""
        values: dict[str, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        for node in self.graph.at([tuple(x.shape) for x in inputs]).nodes:
            if node.op == "conv2d":
                kernel = self.kernels[node.name]
                values[node.name] = convolve(node, values, self.graph.constants, kernel, self._ops)
            elif node.is_native:
                values[node.name] = run_native(node, values, self.graph.constants)
            else:
                values[node.name] = run_in_torch(node, values, self.graph.constants)
            for name in self._dead[node.name]:
                del values[name]
        return [values[name] for name in self.graph.outputs]


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]


@contextmanager
def _choosing_fastest() -> Iterator[None]:
    """Let cuDNN time its algorithms, as the graph keeps the one it is captured with."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class GpuModel(nn.Module):
    """An inference model on a GPU: no parameters, no gradients, the original's inputs and outputs.

    Each size and memory format of input is captured as a CUDA graph when it first comes; calls from several threads
    wait for each other.

    Attributes:
        report: what was chosen (`prunekit.nn.AccelerationReport`); None after loading.
        note: why it is not replayed as a CUDA graph, or None.
        signature: how it is called and what it returns.
    """

    report: object

    def __init__(self, program: GpuProgram, example: Sequence[Tensor], *, captures: bool = True) -> None:
        """Wrap a program whose graph was traced on `example`; `captures` False runs it node by node."""
        super().__init__()
        self.program, self.report, self.note = program, None, None if captures else "it is run node by node"
        self._example = [(list(x.shape), x.dtype, x.device) for x in example]
        self._formats = [is_channels_last(x) for x in example]
        self.signature = Signature.of_text(program.graph.output_spec, program.graph.inputs)
        self._captured: OrderedDict[tuple[object, ...], _Captured] = OrderedDict()
        self._lock = threading.Lock()
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph on the original's arguments.

        Raises:
            InputError: the arguments are not those of the original's forward, or one that is no tensor is not the
                example's, or the dtype, device or size of a tensor is not what the graph takes.
        """
        return self._run(self.signature.tensors(args, kwargs))

    @property
    def example(self) -> list[tuple[list[int], torch.dtype, bool]]:
        """Shapes and dtypes of the inputs that the graph was traced on, and whether they were channels-last."""
        known = zip(self._example, self._formats, strict=True)
        return [(shape, dtype, is_last) for (shape, dtype, _), is_last in known]

    def train(self, mode: bool = True) -> GpuModel:
        """Refuse to train: BatchNorm is folded, and there are no parameters.

        Raises:
            InputError: `mode` is True.
        """
        if mode:
            raise InputError("an accelerated model is for inference; train the model that it was made from.")
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the saved form, and what was set on the model since it was made."""
        from prunekit.engine.gpu_artifact import gpu_model_content, of_bytes  # it imports this file

        extras, text = self._extras(), self.program.graph.output_spec
        if not self.signature.is_picklable:
            extras.pop("signature")
            text = self.signature.to_text()
        return of_bytes, (documents.to_bytes(*gpu_model_content(self, text)),), extras

    def __deepcopy__(self, memo: dict[int, Any]) -> GpuModel:
        """Return a model of its own that shares the packed filters, which nobody changes, and captures anew."""
        example = [
            torch.empty(shape, dtype=dtype, device=device).contiguous(
                memory_format=torch.channels_last if is_last else torch.contiguous_format
            )
            for (shape, dtype, device), is_last in zip(self._example, self._formats, strict=True)
        ]
        copied = GpuModel(self.program, example, captures=self.note is None)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self._extras(), memo))
        return copied

    def _extras(self) -> dict[str, Any]:
        """Return the attributes that the constructor does not make: the report, hooks, a user's own."""
        return {key: value for key, value in self.__dict__.items() if key not in _MADE}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _run(self, inputs: Sequence[Tensor]) -> Any:
        self._check(inputs)
        # What a graph reads and writes outlives this call, so it must not be made of inference tensors.
        with torch.inference_mode(False), torch.no_grad(), self._lock:
            outputs = self.program.run(inputs) if self.note else self._replay([x.detach() for x in inputs])
        return self.signature.results.build(outputs)

    def _replay(self, inputs: list[Tensor]) -> list[Tensor]:
        key = tuple((tuple(x.shape), x.stride()) for x in inputs)
        if key not in self._captured:
            try:
                self._captured[key] = self._capture(inputs)
            except RuntimeError as error:  # an operator that waits for the device cannot be captured
                self.note = f"no CUDA graph: {str(error).splitlines()[0]}"
                return self.program.run(inputs)
            if len(self._captured) > _MAX_SIZES:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        captured = self._captured[key]
        for here, x in zip(captured.inputs, inputs, strict=True):
            here.copy_(x)
        captured.graph.replay()
        return [y.clone() for y in captured.outputs]  # the next replay writes over them

    def _capture(self, inputs: Sequence[Tensor]) -> _Captured:
        static = [x.clone() for x in inputs]
        with torch.cuda.device(inputs[0].device), _choosing_fastest():
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_RUNS):
                    self.program.run(static)
                stream.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=stream):
                    outputs = self.program.run(static)
            torch.cuda.current_stream().wait_stream(stream)
        return _Captured(graph, static, outputs)

    def _check(self, inputs: Sequence[object]) -> None:
        names = self.signature.names
        for name, x, (_, dtype, device) in zip(names, inputs, self._example, strict=True):
            if not isinstance(x, Tensor) or x.device != device or x.dtype != dtype:
                found = f"a {x.dtype} one on {x.device}" if isinstance(x, Tensor) else type(x).__name__
                raise InputError(f"Expected a {dtype} tensor on {device} as {name}, got {found}.")
        example = [shape for shape, _, _ in self._example]
        check_shapes(self.program.graph, [list(x.shape) for x in inputs if isinstance(x, Tensor)], example)
