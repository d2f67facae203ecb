"""Signatures: how a model is called and what it returns, apart from the tensors.

The engine's graph takes tensors and gives tensors. Around it stands the call as the model's users know it: names and
defaults of the forward's parameters, arguments that are no tensors, containers, and the classes of what comes back.

    signature, tensors = Signature.of_call(model.forward, (images,), {"augment": False})
    args, kwargs = signature.call(tensors)      # the same call
    tensors = signature.tensors(args, kwargs)   # of another call, which must have the same structure
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten, treespec_loads

from prunekit.engine.structure_json import dtype_of_json, structure_of_json, structure_to_json
from prunekit.errors import InputError
from prunekit.structure import Structure, flatten

_ANY_CALL = (
    inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
    inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
)


@dataclass(frozen=True)
class Signature:
    """A call and its result without their tensors.

    Attributes:
        parameters: The forward's, without `self` and annotations.
        arguments: Of the example, by the parameter's name; defaults are filled in.
        results: How the outputs nest.
        argument_dtypes: Of the arguments' tensors; () where they are not known.
        result_dtypes: Of the outputs' tensors, likewise.
    """

    parameters: tuple[inspect.Parameter, ...]
    arguments: dict[str, Structure]
    results: Structure
    argument_dtypes: tuple[torch.dtype, ...] = ()
    result_dtypes: tuple[torch.dtype, ...] = ()

    @classmethod
    def of_call(
        cls, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Signature, list[Tensor]]:
        """Describe a call of `forward`; what it returns is not known yet (`with_results`).

        Raises:
            TypeError: `forward` does not take these arguments.
        """
        parameters = _parameters_of(forward)
        bound = inspect.Signature(parameters).bind(*args, **kwargs)
        bound.apply_defaults()
        tensors: list[Tensor] = []
        arguments = {}
        for name, value in bound.arguments.items():
            found, structure = flatten(value)
            arguments[name] = structure.without_tensors()
            tensors += found
        dtypes = tuple(tensor.dtype for tensor in tensors)
        return cls(parameters, arguments, Structure("tuple", tuple), dtypes), tensors

    @classmethod
    def of_text(cls, text: str, inputs: Sequence[str]) -> Signature:
        """Read what `to_text` wrote, or the outputs' `treespec_dumps` that graphs and older files have instead.

        Args:
            text: either.
            inputs: the graph's names of its inputs, which are the parameters in the second case.

        Raises:
            ValueError, KeyError, TypeError: the text is damaged.
        """
        document = json.loads(text)
        if isinstance(document, dict):
            return cls.from_json(document)
        spec = treespec_loads(text)
        results = flatten(tree_unflatten([torch.empty(0)] * spec.num_leaves, spec))[1]
        parameters = tuple(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in inputs)
        return cls(parameters, dict.fromkeys(inputs, Structure("tensor")), results)

    def with_results(self, outputs: object) -> Signature:
        """Return the signature of the same call that returns `outputs`."""
        tensors, structure = flatten(outputs)
        dtypes = tuple(tensor.dtype for tensor in tensors)
        return replace(self, results=structure.without_tensors(), result_dtypes=dtypes)

    @property
    def names(self) -> list[str]:
        """The tensors' names: their parameter's, with the place inside it, such as `images[0]`."""
        return [path for name, structure in self.arguments.items() for path in structure.paths(name)]

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the tensors of a call, in the order of the example's.

        What stands where the example has a tensor is returned as it is, to be checked by the caller.

        Raises:
            InputError: the call does not fit the parameters, or differs from the example in what is no tensor.
        """
        if not kwargs and len(args) == len(self.arguments) and self._takes_plain_tensors:
            return list(args)
        tensors: list[Any] = []
        for name, value in self._bind(args, kwargs).items():
            expected = self.arguments[name]
            if expected.kind == "tensor":
                tensors.append(value)
                continue
            found, structure = flatten(value)
            difference = expected.differs_from(structure, name)
            if difference:
                raise InputError(f"{difference}: an accelerated model takes arguments like those it was made with.")
            tensors += found
        return tensors

    def call(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments that hold `tensors`."""
        bound = inspect.Signature(self.parameters).bind_partial()
        start = 0
        for name, structure in self.arguments.items():
            stop = start + structure.num_tensors
            bound.arguments[name] = structure.build(tensors[start:stop])
            start = stop
        return bound.args, bound.kwargs

    def to_text(self) -> str:
        """Return the signature as JSON text.

        Raises:
            InputError: an argument or output is of a class that a file cannot hold; it is named.
        """
        return json.dumps(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the signature as JSON-ready data; see `to_text`."""
        return {
            "parameters": [self._parameter_to_json(parameter) for parameter in self.parameters],
            "arguments": {name: structure_to_json(s, f"the argument {name}") for name, s in self.arguments.items()},
            "results": structure_to_json(self.results, "the output"),
            "argument_dtypes": [str(dtype) for dtype in self.argument_dtypes],
            "result_dtypes": [str(dtype) for dtype in self.result_dtypes],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Signature:
        """Read what `to_json` wrote; no code that the document names is imported or run.

        Raises:
            ValueError, KeyError, TypeError: the document is damaged.
        """
        arguments = {str(name): structure_of_json(data) for name, data in document["arguments"].items()}
        parameters = tuple(_parameter_of_json(data, arguments) for data in document["parameters"])
        inspect.Signature(parameters)  # refuses an order or names that no function can have
        if [p.name for p in parameters] != list(arguments):
            raise ValueError(f"its parameters are {[p.name for p in parameters]}, its arguments {list(arguments)}")
        signature = cls(
            parameters,
            arguments,
            structure_of_json(document["results"]),
            tuple(dtype_of_json(text) for text in document["argument_dtypes"]),
            tuple(dtype_of_json(text) for text in document["result_dtypes"]),
        )
        for names, dtypes in (
            (signature.names, signature.argument_dtypes),
            (range(signature.results.num_tensors), signature.result_dtypes),
        ):
            if dtypes and len(dtypes) != len(names):
                raise ValueError(f"{len(names)} tensors have {len(dtypes)} dtypes")
        return signature

    @property
    def _takes_plain_tensors(self) -> bool:
        return all(structure.kind == "tensor" for structure in self.arguments.values())

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            bound = inspect.Signature(self.parameters).bind(*args, **kwargs)
        except TypeError as error:
            wanted = ", ".join(str(parameter.replace(default=parameter.empty)) for parameter in self.parameters)
            raise InputError(
                f"Expected the arguments ({wanted}), got {len(args)} positional ones"
                f"{''.join(f' and {name}' for name in kwargs)}: {error}."
            ) from error
        bound.apply_defaults()
        return dict(bound.arguments)

    def _parameter_to_json(self, parameter: inspect.Parameter) -> dict[str, Any]:
        data: dict[str, Any] = {"name": parameter.name, "kind": parameter.kind.name}
        if parameter.default is not parameter.empty:
            default = flatten(parameter.default)[1]
            is_examples = self.arguments[parameter.name].differs_from(default) is None and not default.num_tensors
            data["default"] = is_examples or structure_to_json(default, f"the default of {parameter.name}")
        return data


def _parameters_of(forward: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # a method of TorchScript or of C++ has none
        return _ANY_CALL
    return tuple(parameter.replace(annotation=parameter.empty) for parameter in parameters)


def _parameter_of_json(data: Mapping[str, Any], arguments: Mapping[str, Structure]) -> inspect.Parameter:
    kind = getattr(inspect.Parameter, str(data["kind"]))
    if not isinstance(kind, type(inspect.Parameter.KEYWORD_ONLY)):
        raise ValueError(f"{data['kind']!r} is no kind of parameter")
    default: Any = inspect.Parameter.empty
    if "default" in data:
        is_examples = data["default"] is True
        structure = arguments[str(data["name"])] if is_examples else structure_of_json(data["default"])
        default = structure.build([])
    return inspect.Parameter(str(data["name"]), kind, default=default)
