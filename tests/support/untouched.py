"""Whether what was handed over is still what it was, bit for bit: modules, tensors, optimizers, random states.

    with untouched(model, x, masks):
        prunekit.accelerate(model, x)

asserts at the end, also when the block raises. `snapshot` and `differences` are the two halves of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_MODULE_DICTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", *_HOOKS)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size)


@dataclass(frozen=True)
class Snapshot:
    """Facts by name ("argument 0, 1.weight: bytes"), and the objects themselves, so that no id is given away twice."""

    facts: dict[str, object]
    handed_over: tuple[object, ...]


def snapshot(*handed_over: object) -> Snapshot:
    """Describe modules, tensors, optimizers, dataclasses and containers of them, and every global random state.

    Of a module: each submodule's identity, class, mode, hooks and attributes; each parameter's and buffer's identity,
    bytes, dtype, strides, `requires_grad` and `.grad`. Values that it does not know are described by identity.
    """
    facts: dict[str, object] = dict(_global_state())
    alive: list[object] = [handed_over]
    for index, value in enumerate(handed_over):
        facts |= {f"argument {index}{name}": fact for name, fact in _describe(value, alive)}
    return Snapshot(facts, tuple(alive))


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """Return one line for each fact that changed, vanished or is new."""
    names = before.facts.keys() | after.facts.keys()
    absent = object()
    return [
        f"{name}: {_brief(before.facts.get(name, 'absent'))} → {_brief(after.facts.get(name, 'absent'))}"
        for name in sorted(names)
        if before.facts.get(name, absent) != after.facts.get(name, absent)
    ]


@contextmanager
def untouched(*handed_over: object) -> Iterator[None]:
    """Assert that the block changes nothing of what is handed over, nor any random state, also when it raises."""
    before = snapshot(*handed_over)
    assert any(isinstance(fact, bytes) for name, fact in before.facts.items() if name.startswith("argument"))
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        changed = differences(before, snapshot(*handed_over))
        assert not changed, "\n".join([*changed, *([f"while raising {error!r}"] if error else [])])


def _global_state() -> Iterator[tuple[str, object]]:
    yield "torch's random state", _bytes(torch.get_rng_state())
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            yield f"torch's random state on GPU {index}", _bytes(state)
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the global one is what is watched)
    yield "NumPy's random state", (kind, np.asarray(keys).tobytes(), *rest)
    yield "Python's random state", random.getstate()
    yield "grad mode", torch.is_grad_enabled()
    yield "inference mode", torch.is_inference_mode_enabled()
    yield "default dtype", torch.get_default_dtype()
    yield "number of threads", torch.get_num_threads()
    yield "deterministic algorithms", torch.are_deterministic_algorithms_enabled()
    yield "cuDNN's flags", (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)


def _describe(value: object, alive: list[object]) -> Iterator[tuple[str, object]]:
    """Yield (name behind the argument's, fact); `alive` collects whatever is described by its identity."""
    if isinstance(value, nn.Module):
        yield from _describe_module(value, alive)
    elif isinstance(value, Tensor):
        yield from _describe_tensor(value, alive)
    elif isinstance(value, Optimizer):
        yield from _describe({"state": value.state, "groups": value.param_groups}, alive)
        hooks = value._optimizer_step_post_hooks, value._optimizer_step_pre_hooks
        yield ": hooks", [list(found.values()) for found in hooks]
    elif isinstance(value, torch.Generator):
        yield ": random state", _bytes(value.get_state())
    elif isinstance(value, np.ndarray):
        yield ": array", (value.shape, value.dtype, value.tobytes())
    elif isinstance(value, Mapping):
        yield ": keys", [key if isinstance(key, _PLAIN) else id(key) for key in value]
        for index, (key, item) in enumerate(value.items()):
            label = repr(key) if isinstance(key, _PLAIN) else index
            yield from ((f"[{label}]{name}", fact) for name, fact in _describe(item, alive))
    elif isinstance(value, (list, tuple)):
        yield ": length", len(value)
        for index, item in enumerate(value):
            yield from ((f"[{index}]{name}", fact) for name, fact in _describe(item, alive))
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            found = _describe(getattr(value, field.name), alive)
            yield from ((f".{field.name}{name}", fact) for name, fact in found)
    else:
        yield ": value", _identity(value, alive)


def _describe_module(module: nn.Module, alive: list[object]) -> Iterator[tuple[str, object]]:
    for path, part in module.named_modules(remove_duplicate=False):
        alive.append(part)
        label = f", {path or 'the module itself'}"
        yield f"{label}: object", (id(part), type(part))
        yield f"{label}: mode", part.training
        yield f"{label}: children", [(name, id(child)) for name, child in part._modules.items()]
        yield f"{label}: non-persistent", sorted(part._non_persistent_buffers_set)
        for hooks in _HOOKS:
            yield f"{label}: {hooks}", [id(hook) for hook in getattr(part, hooks, {}).values()]
        for name, tensor in {**part._parameters, **part._buffers}.items():
            yield from ((f"{label}.{name}{rest}", fact) for rest, fact in _describe(tensor, alive))
        for name, value in part.__dict__.items():
            if name not in _MODULE_DICTS:
                yield from _describe_attribute(f"{label}.{name}", value, alive)


def _describe_attribute(label: str, value: object, alive: list[object]) -> Iterator[tuple[str, object]]:
    """Plain tensors by their values (hooks such as weight_norm's recompute them at every call), others by identity."""
    if isinstance(value, Tensor):
        yield f"{label}: bytes", (tuple(value.shape), value.dtype, _bytes(value))
    elif isinstance(value, nn.Module):
        yield f"{label}: object", id(value)
    else:
        yield from ((f"{label}{rest}", fact) for rest, fact in _describe(value, alive))


def _describe_tensor(tensor: Tensor, alive: list[object]) -> Iterator[tuple[str, object]]:
    alive.append(tensor)
    yield ": object", (id(tensor), type(tensor))
    yield ": layout", (tuple(tensor.shape), tensor.dtype, tensor.device, tensor.stride(), tensor.data_ptr())
    yield ": bytes", _bytes(tensor)
    yield ": requires_grad", tensor.requires_grad
    yield ": hooks", list(tensor._backward_hooks or {})
    accumulated = list(getattr(tensor, "_post_accumulate_grad_hooks", None) or {})
    yield ": hooks after accumulation", accumulated
    if tensor.is_leaf:
        yield ": grad", None if tensor.grad is None else (id(tensor.grad), _bytes(tensor.grad))
        alive.append(tensor.grad)


def _identity(value: object, alive: list[object]) -> object:
    if isinstance(value, _PLAIN):
        return repr(value)  # so that nan is nan
    alive.append(value)
    return type(value), id(value)


def _bytes(tensor: Tensor) -> bytes:
    """The values in memory, nan and negative zero as they are."""
    if tensor.is_meta:
        return b"meta"
    dense = tensor.detach().cpu().contiguous()
    return dense.flatten().view(torch.uint8).numpy().tobytes() if dense.numel() else b""


def _brief(fact: object) -> str:
    if isinstance(fact, bytes):
        return f"{len(fact)} bytes {fact[:8].hex()}… (hash {hash(fact):x})"
    text = repr(fact)
    return text if len(text) <= 200 else f"{text[:200]}… (hash {hash(text):x})"
