"""masked_conv2d and its gradients on CUDA tensors: a sparse kernel where it is faster, cuDNN elsewhere.

A mask is packed when it comes a second time unchanged: masks that live for one call would cost more to pack than the
call takes. Packing keeps places only; the weights are gathered into them at every call, so training sees each step.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prunekit.ops.cuda.cache import KernelCache
from prunekit.ops.cuda.choice import KernelChoice, is_tf32_allowed
from prunekit.ops.cuda.devices import Gpu, gpu_of
from prunekit.ops.cuda.plan import ConvJob, ConvPlan, Ops, forward_job, input_grad_job
from prunekit.ops.cuda.registry import has_sparse_kernel
from prunekit.ops.cuda.sources import kernel_sources
from prunekit.ops.cuda.sparse_kernel import cuda_op
from prunekit.ops.library import kernel
from prunekit.ops.masked_conv2d import (
    dense_input_grad,
    masked_conv2d_input_grad_reference,
    masked_conv2d_reference,
)
from prunekit.ops.memory_format import conv_memory_format
from prunekit.timing import cuda_seconds

_LOG = logging.getLogger("prunekit")
_PLANS_OF_A_MASK = 16  # sizes times directions; the one that was used longest ago goes first
_JOBS = {"forward": forward_job, "input_grad": input_grad_job}


@dataclass(frozen=True)
class CudaDevice:
    """What the dispatch needs of a device.

    Attributes:
        gpu: its figures.
        ops: from a sparse kernel's name to its op.
        seconds_of: times a call.
        allow_tf32: whether torch lets cuDNN use tf32.
        is_capturing: a CUDA graph is being captured: nothing may wait for the device, so nothing is packed.
    """

    gpu: Gpu
    ops: Ops
    seconds_of: Callable[[Callable[[], Tensor]], float]
    allow_tf32: bool
    is_capturing: bool


def device_of(x: Tensor) -> CudaDevice | None:
    """Describe x's device, or return None where it has neither CUDA kernels nor Triton."""
    if x.device.type != "cuda" or not _sources():
        return None
    is_capturing = torch.cuda.is_current_stream_capturing()
    return CudaDevice(_gpu(x.device), cuda_op, cuda_seconds, is_tf32_allowed(), is_capturing)


@cache
def _sources() -> frozenset[str]:
    return kernel_sources()


@cache
def _gpu(device: torch.device) -> Gpu:
    return replace(gpu_of(torch.cuda.get_device_properties(device)), sources=_sources())


@cache
def kernel_cache() -> KernelCache:
    """Return the process's cache of measurements."""
    kernels = KernelCache.default()
    if kernels.note:
        _LOG.warning("prunekit: %s.", kernels.note)
    return kernels


@dataclass
class _PackedMask:
    """What is known of one mask.

    Attributes:
        version: of the mask when it was packed; another one forgets everything.
        seen: what was asked for once.
        plans: what was packed, or None for dense, by what was asked for.
    """

    version: int
    seen: set[tuple[object, ...]] = field(default_factory=set)
    plans: OrderedDict[tuple[object, ...], ConvPlan | None] = field(default_factory=OrderedDict)


_MASKS = WeakTensorKeyDictionary()
_LOCK = threading.RLock()


def _packed_mask(mask: Tensor) -> _PackedMask:
    known: _PackedMask | None = _MASKS.get(mask)  # type: ignore[no-untyped-call]
    if known is None or known.version != mask._version:
        known = _PackedMask(mask._version)
        _MASKS[mask] = known
    return known


def _plan(
    device: CudaDevice | None,
    direction: str,
    x_shape: tuple[int, ...],
    dtype: torch.dtype,
    mask: Tensor,
    *geometry: Any,
) -> ConvPlan | None:
    """Return the plan, or None for dense; a mask's first call and calls while a graph is captured pack nothing."""
    if device is None or not has_sparse_kernel(dtype, device.gpu):
        return None
    if mask.is_inference():  # it has no version
        return None
    key = _key(device, direction, x_shape, dtype, geometry)
    with _LOCK:
        known = _packed_mask(mask)
        if key in known.plans:
            known.plans.move_to_end(key)
            return known.plans[key]
        if key not in known.seen or device.is_capturing:
            known.seen.add(key)
            return None
        job: ConvJob | None = _JOBS[direction](x_shape, mask, *geometry)
        plan = None
        if job is not None:
            choice = job.choose(device.gpu, dtype, allow_tf32=device.allow_tf32, cache=kernel_cache())
            plan = job.pack(device.gpu, choice, mask.device, dtype)
        _keep(known, key, plan)
        return plan


def _key(
    device: CudaDevice, direction: str, x_shape: tuple[int, ...], dtype: torch.dtype, geometry: object
) -> tuple[object, ...]:
    return direction, x_shape, dtype, device.gpu, device.allow_tf32, str(geometry)


def _keep(known: _PackedMask, key: tuple[object, ...], plan: ConvPlan | None) -> None:
    known.plans[key] = plan
    if len(known.plans) > _PLANS_OF_A_MASK:
        known.plans.popitem(last=False)


def masked_conv2d_cuda(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """Run the op on CUDA tensors; see `prunekit.ops.masked_conv2d` for the arguments."""
    device = device_of(x)
    plan = _plan(device, "forward", tuple(x.shape), x.dtype, mask, *geometry)
    if plan is not None and device is not None:
        return plan.run(x, weight, bias, ops=device.ops).contiguous(memory_format=conv_memory_format(x, weight))
    if device is not None and device.is_capturing:  # the reference asks the device whether x is finite
        return F.conv2d(x, torch.where(mask, weight, 0), bias, *geometry)
    return masked_conv2d_reference(x, weight, mask, bias, *geometry)


def masked_conv2d_input_grad_cuda(
    grad: Tensor, weight: Tensor, mask: Tensor, x_shape: list[int], *geometry: Any
) -> Tensor:
    """Run the gradient to the input on CUDA tensors, as a transposed convolution over kept weights."""
    device = device_of(grad)
    plan = _plan(device, "input_grad", tuple(x_shape), grad.dtype, mask, *geometry)
    if plan is not None and device is not None:
        return plan.run(grad, weight, ops=device.ops).contiguous(memory_format=conv_memory_format(grad, weight))
    if device is not None and device.is_capturing:
        return dense_input_grad(grad, torch.where(mask, weight, 0), x_shape, *geometry)
    return masked_conv2d_input_grad_reference(grad, weight, mask, x_shape, *geometry)


kernel("masked_conv2d", "CUDA")(masked_conv2d_cuda)
kernel("masked_conv2d_input_grad", "CUDA")(masked_conv2d_input_grad_cuda)


def tune_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> dict[str, KernelChoice]:
    """Measure the kernels on x's device, for this process and, on disk, for later ones; return what was chosen.

    Without it the model chooses. Measured are the convolution ("forward") and the gradient to its input ("input_grad"),
    for x's size and the mask's density; the mask is packed.

    Args:
        x: [N, C, H, W], float32, float16 or bfloat16, on a GPU.
        weight: [K, C / groups, R, S], of x's dtype.
        mask: bool, of weight's shape, True = kept.
        stride: pair.
        padding: pair.
        dilation: pair.
        groups: number of channel groups.

    Raises:
        WrongOutputError: a sparse kernel computes something else than the dense convolution.
    """
    device, geometry = device_of(x), (list(stride), list(padding), list(dilation), groups)
    if device is None or not has_sparse_kernel(x.dtype, device.gpu):
        return {}
    kept = torch.where(mask, weight.detach(), 0)
    y = F.conv2d(x, kept, None, *geometry)
    inputs = {"forward": x.detach(), "input_grad": torch.ones_like(y)}
    dense: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: F.conv2d(x, kept, None, *geometry),
        "input_grad": lambda: dense_input_grad(inputs["input_grad"], kept, list(x.shape), *geometry),
    }
    choices, measured = {}, kernel_cache()
    for direction, make_job in _JOBS.items():
        job = make_job(x.shape, mask, *geometry)
        if job is None:
            continue
        choice, plan = job.measure(
            device.gpu,
            x.device,
            x.dtype,
            lambda plan, source=inputs[direction]: plan.run(source, kept, ops=device.ops),  # type: ignore[misc]
            dense[direction],
            device.seconds_of,
            measured,
            device.allow_tf32,
        )
        choices[direction] = choice
        with _LOCK:
            _keep(_packed_mask(mask), _key(device, direction, tuple(x.shape), x.dtype, geometry), plan)
    measured.save()
    return choices
