"""Models as graphs of ATen operators: the one place that calls torch.export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.export._trace
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from prunekit.errors import InputError, first_line
from prunekit.graph.calls import Call
from prunekit.graph.nodes import mutates
from prunekit.structure import Structure, flatten

# These say by a log with a traceback what is an answer here: that the forward does not run on symbols.
_LOGGERS = (
    "torch._subclasses.fake_tensor", "torch._export.non_strict_utils", "torch.fx.experimental.symbolic_shapes",
    "torch.export", "torch._export",
)  # fmt: skip


def exported(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None
) -> ExportedProgram:
    """Export a model, which is in eval mode; raises whatever torch.export or the forward does."""
    with torch.no_grad(), quiet():
        return torch.export.export(model, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch.export logs, warns of and prints, such as the graph so far: failures are reported as notes."""
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack.enter_context(mock.patch.object(torch.export._trace, "print", create=True))
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL + 1)
        yield


class Flat(nn.Module):
    """A model that takes its tensors one by one and returns its outputs' tensors, whatever they are nested in.

    It shares the model's parameters, buffers and submodules under their own names.
    """

    def __init__(
        self, model: nn.Module, example: Call, note: Callable[[Structure], None], is_copying: bool = False
    ) -> None:
        """Wrap a model.

        Args:
            model: It is only read.
            example: Says how its arguments nest.
            note: Is told how the outputs nest; torch.export puts attributes back to what they were.
            is_copying: Whether the model gets copies of the tensors, because it writes into them.
        """
        super().__init__()
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.training = model.training
        self._call: Callable[[Sequence[Tensor]], Call] = lambda tensors: example.with_tensors(tensors)
        # Not a submodule: that would rename the parameters.
        self._model: Callable[..., Any] = lambda *args, **kwargs: model(*args, **kwargs)
        self._note, self._is_copying = note, is_copying

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the model, and tell how its outputs nest."""
        call = self._call([x.clone() for x in tensors] if self._is_copying else tensors)
        found, structure = flatten(self._model(*call.args, **call.kwargs))
        self._note(structure)
        return tuple(found)


def export_flat(
    model: nn.Module, example: Call, sizes: Sequence[object] | None = None
) -> tuple[ExportedProgram, Structure]:
    """Export a model as a program of its tensors alone, and say how the outputs nest.

    Args:
        model: In eval mode; it may write into its inputs.
        example: What it is traced on.
        sizes: The dynamic sizes of each tensor, as torch.export takes them.

    Raises:
        InputError: torch.export refuses it, or the forward changes buffers.
    """
    for is_copying in (False, True):
        outputs: list[Structure] = []
        flat = Flat(model, example, outputs.append, is_copying)
        inputs = Call(tuple(x.detach().clone() for x in example.tensors))
        program = export_program(flat, inputs, None if sizes is None else (tuple(sizes),), type(model).__name__)
        if not program.graph_signature.user_inputs_to_mutate:
            break
    if program.graph_signature.buffers_to_mutate:
        raise InputError(
            f"Expected a model whose forward leaves its buffers alone in eval mode, but {type(model).__name__} changes "
            f"{', '.join(program.graph_signature.buffers_to_mutate.values())}."
        )
    return program, outputs[-1]


def export_program(model: nn.Module, example: Call, dynamic_shapes: Any = None, name: str = "") -> ExportedProgram:
    """Export a model as functional ATen operators.

    Raises:
        InputError: torch.export refuses it; the sentence says why, and names the model's largest part.
    """
    name = name or type(model).__name__
    try:
        program = exported(model, example.args, example.kwargs, dynamic_shapes)
        if any(mutates(node) or _is_block(node) for node in program.graph.nodes):
            with torch.no_grad(), quiet():
                program = program.run_decompositions({})  # nothing in place; autocast's casts one by one
    except Exception as error:  # a foreign forward raises what it likes
        raise InputError(
            "Expected a model that torch.export can trace on the example input, without control flow that depends on "
            f"pixels, but {name} raised {type(error).__name__}: {first_line(error)}.{_part_to_compact(model)}"
        ) from error
    return program


def _is_block(node: fx.Node) -> bool:
    """Tell whether a node runs a graph of its own, as a block under autocast does."""
    return isinstance(node.target, torch._ops.HigherOrderOperator)


def _part_to_compact(model: nn.Module) -> str:
    """Name the child with most parameters, which detectors call their backbone."""
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    if len(sizes) < 2:
        return ""
    largest = max(sizes, key=lambda name: sizes[name])
    return f" A part of it may trace alone: compact(model.{largest}, ...) with that part's input."
