"""The door between the study and a kind of model: a `Task` is all that training, evaluation and reports ask about one.

A user's own module registers a family of models, and for outputs of a new kind a task, and is named by `--plugin`. A
factory of models can go without: it is named as the model itself.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunekit.attacks import AttackLosses
from prunekit.errors import InputError, first_line
from prunekit.registry import look_up, register
from prunekit.state_dicts import Transfer
from prunekit.task_data import Data as Data

if TYPE_CHECKING:
    from PIL import Image

Figures = Mapping[str, float | None]
#: What a task finds in images, by image id.
Predictions = Mapping[int, Any]


@dataclass(frozen=True)
class ModelSpec:
    """What builds a model again.

    Attributes:
        name: A registered family, or "package.module:factory" of a plugin.
        arguments: The factory's keyword arguments, JSON-able.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Build the model, untrained, in training mode.

        Raises:
            InputError: When the family is unknown, does not take the arguments, or builds no model.
        """
        return _built(self.name, family_of(self.name).build, self.arguments)

    def outlined(self, **arguments: Any) -> nn.Module:
        """Build the model without memory, with other values for some arguments; nothing is drawn."""
        with torch.device("meta"), torch.random.fork_rng([]):
            return self.updated(**arguments).build()

    def require_usual(self, least_classes: int) -> None:
        """Raise InputError unless `num_classes` and `width`, as far as they are said, make sense."""
        classes, width = self.arguments.get("num_classes", least_classes), self.arguments.get("width", 1.0)
        if not isinstance(classes, int) or classes < least_classes:
            raise InputError(f"Expected num_classes to be a whole number of at least {least_classes}, got {classes!r}")
        if not isinstance(width, int | float) or not 0 < width <= 4:
            raise InputError(f"Expected width to be a number above 0 and up to 4, got {width!r}")

    def updated(self, **arguments: Any) -> ModelSpec:
        """Return the spec with other values for some arguments."""
        return ModelSpec(self.name, {**self.arguments, **arguments})


class Options(Protocol):
    """The fields of a configuration that predicting reads; a task uses those that it knows."""

    @property
    def score_threshold(self) -> float: ...  # noqa: D102
    @property
    def iou_threshold(self) -> float: ...  # noqa: D102
    @property
    def max_detections(self) -> int: ...  # noqa: D102
    @property
    def max_candidates(self) -> int | None: ...  # noqa: D102


@dataclass(frozen=True)
class Figure:
    """One of the figures that tables and plots show: its column among a task's metrics, and its name."""

    column: str
    name: str


class Losses(Protocol):
    """What training asks of a task; N is the number of images, outputs are what the model returns."""

    def loss(self, model: nn.Module, x: Tensor, targets: Any) -> Tensor:
        """Return the training losses [N] of a model on images x [N, 3, H, W]."""

    def attack_losses(self, targets: Any) -> AttackLosses:
        """Return what attacks raise, as functions of outputs; its `total` is the training loss."""

    def divergence(self, attacked: Any, clean: Any) -> Tensor:
        """Return how far outputs for attacked images are from those for clean ones, [N].

        0 where they agree and positive elsewhere, whatever the right answer is; TRADES needs it.
        """


@runtime_checkable
class LabelsImages(Protocol):
    """What classifiers have beside the rest: models return logits [N, classes], of which one is right."""

    def labels(self, targets: Any) -> Tensor:
        """Return the right classes, int64 [N]."""


class Task(Losses, Protocol):
    """All that the study asks about a kind of model."""

    @property
    def spec(self) -> ModelSpec:
        """What builds the model; some arguments may be missing until `for_data`."""

    @property
    def input_multiple(self) -> int:
        """What sides of input images are multiples of: 32 for YOLO, 1 for most classifiers."""

    @property
    def image_size(self) -> int:
        """The side of usual images in pixels, where neither options nor data say one."""

    @property
    def augmentation(self) -> Mapping[str, Any]:
        """How training images vary: values of `prunekit.training.augment.AugmentConfig`'s fields, by name."""

    @property
    def figures(self) -> Sequence[Figure]:
        """The metrics that tables and plots show, the main one first."""

    def open_data(self, path: Path, image_size: int | None, grayscale: bool, limit: int | None) -> Data:
        """Open a data set, at a size of the task's or the data's own if none is given; InputError if it cannot be."""

    def for_data(self, data: Any) -> Task:
        """Return the task with what the data say, such as the number of classes, in its spec."""

    def fitted(self, data: Any, seed: int) -> Task:
        """Return the task with what else of the model can be fitted to data, such as a detector's anchors.

        InputError when there is nothing of that kind, or the data are too few.
        """

    def attribution(self, outputs: Any, targets: Any) -> Tensor:
        """Return what DeepLIFT explains, [N]."""

    def predict(self, model: nn.Module, x: Tensor, batch: Any, options: Options) -> Predictions:
        """Return what a model finds in images x [N, 3, H, W], the batch's own or attacked, on the CPU."""

    def postprocessing(self, outputs: Any, options: Options) -> Mapping[str, Callable[[], object]]:
        """Return the steps from outputs to predictions that are timed beside the network, by name."""

    def metrics(self, predictions: Predictions, data: Any) -> Figures:
        """Return how good predictions are, by figure; nan or None where there is nothing to measure on."""

    def success(self, clean: Predictions, attacked: Predictions, data: Any) -> Figures:
        """Return what an attack took: "attack_success" first, the share of what was right and no longer is."""

    def columns(
        self, clean: Figures, attacked: Figures | None, transferred: Figures | None, success: Figures | None
    ) -> Figures:
        """Return the columns of results.csv on accuracy, of the same names in every row; None is an empty cell."""

    def save_predictions(self, stem: Path, predictions: Predictions, data: Any) -> list[Path]:
        """Write predictions to `stem` with suffixes; return the files."""

    def load_predictions(self, stem: Path, data: Any) -> Predictions:
        """Read what `save_predictions` wrote."""

    def shown(self, stem: Path) -> Mapping[int, Any]:
        """Read, by image id, what `picture` shows of the predictions in `stem`'s files."""

    def picture(self, image: Image.Image, example: Mapping[str, Any], found: Any) -> Image.Image:
        """Draw an image for the report with what was found in it; with the truth where `found` is None."""

    def describe(self, config: Mapping[str, Any]) -> str:
        """Say in one line how accuracy is measured under a configuration."""

    def reads(self, path: Path) -> bool:
        """Return whether a file is one for `load_weights`, of whatever kind: a trainer's checkpoint, say."""

    def load_weights(self, model: nn.Module, path: Path, partly: bool = False) -> Transfer | None:
        """Read weights from a file that prunekit did not write; InputError if there is no such format.

        With `partly` also those of other classes or of a backbone alone; return what was taken if it was not all.
        """

    def for_weights(self, path: Path) -> Task:
        """Return the task with what such a file says, the number of classes at least; InputError if it does not."""

    def export(self, model: nn.Module, folder: Path, images_seen: int) -> list[str]:
        """Write trained weights for other programs too; return the files' names."""


@runtime_checkable
class SuppressesBoxes(Protocol):
    """A task whose models propose boxes of which suppression keeps the best: what an attack on latency multiplies."""

    def candidate_scores(self, outputs: Any) -> Sequence[Tensor]:
        """Return each image's scores by box and class, [M, C], before any is dropped; gradients flow."""


@runtime_checkable
class TellsFlips(Protocol):
    """A task whose answers are right or wrong as a whole."""

    def flipped(self, example: Mapping[str, Any], clean: Any, attacked: Any) -> bool:
        """Return whether an attack made a right answer wrong; answers are as `Task.shown` reads them."""


@dataclass(frozen=True)
class Family:
    """A family of models: the factory of keyword arguments, and what makes the task of a spec."""

    build: Callable[..., nn.Module]
    task: str


_FAMILIES: dict[str, Family] = {}
_NAMED: dict[str, Family] = {}  # factories, "package.module:factory", that the user named as the model
_TASKS: dict[str, Callable[[ModelSpec], Task]] = {}
_RECOGNIZED: dict[str, Callable[[nn.Module], bool]] = {}
_PLUGINS: set[str] = set()
#: Modules that register prunekit's own families, imported when a family is first asked for.
_OWN = ("prunekit.detection.task", "prunekit.detection.torchvision_families", "prunekit.classification.task")


def register_task(
    name: str, make: Callable[[ModelSpec], Task], recognizes: Callable[[nn.Module], bool] | None = None
) -> None:
    """Add a kind of task.

    Args:
        name: What `register_model` and --task call it.
        make: Builds the task of a spec, whose arguments it checks as far as they are there.
        recognizes: Returns whether a model that does not say its task is one for this; None for no model.
    """
    register(_TASKS, "task", name, make)
    if recognizes is not None:
        _RECOGNIZED[name] = recognizes


def register_model(name: str, build: Callable[..., nn.Module], task: str) -> None:
    """Add a family of models of a registered task; `build` takes JSON-able keyword arguments."""
    look_up(_TASKS, "the task", task)
    register(_FAMILIES, "model", name, Family(build, task))


def models() -> list[str]:
    """Return the names of all families that are registered now."""
    _register_own()
    return [*_FAMILIES]


def family_of(name: str) -> Family:
    """Return a family by its name or "package.module:factory".

    The latter has been named by the user (`name_factory`), or its module is a plugin and it says its task in an
    attribute `task`: a file says which factory its model is from, and must not be able to import or call anything else.

    Raises:
        InputError: When there is none.
    """
    _register_own()
    module, _, factory = name.partition(":")
    if not factory:
        return look_up(_FAMILIES, "the model", name)
    if name in _NAMED:
        return _NAMED[name]
    build = getattr(sys.modules[module], factory, None) if module in _PLUGINS else None
    task = getattr(build, "task", None)
    if not callable(build) or not isinstance(task, str):
        raise InputError(f"Expected the model {name!r} of a file to be named by the user: add --model {name}.")
    look_up(_TASKS, "the task", task)
    return Family(build, task)


def name_factory(name: str, task: str | None = None, arguments: Mapping[str, Any] | None = None) -> None:
    """Import a user's own factory of models, "package.module:factory", and use it as a family of that name.

    Naming it is what allows to import its module and to call it; this is for names that the user gave, never for those
    that stand in a file.

    Args:
        name: The module, which may be in the working directory, and the factory in it.
        task: What it is for; None asks the factory's attribute `task`, else what it builds.
        arguments: The factory's keyword arguments, for building a model to ask.

    Raises:
        InputError: When there is no such factory, it builds no model, or nothing says its task.
    """
    _register_own()
    module, _, factory = name.partition(":")
    build = getattr(_imported(module, "--model"), factory, None)
    if not callable(build):
        found = "no such name" if build is None else type(build).__name__
        raise InputError(f"--model: expected a factory of models called {factory!r} in {module}, got {found}.")
    task = task or getattr(build, "task", None) or _recognized(name, build, arguments or {})
    look_up(_TASKS, "the task", task)
    _NAMED[name] = Family(build, task)


def _recognized(name: str, build: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Return the task for which a factory builds models."""
    classes = {"num_classes": 2} if _has_parameter(build, "num_classes") else {}
    with torch.random.fork_rng([]):
        model = _built(name, build, {**classes, **arguments}).eval()
    found = next((task for task, recognizes in _RECOGNIZED.items() if recognizes(model)), None)
    if found is None:
        raise InputError(f"--task: expected one of {', '.join(_TASKS)}, as {name} builds a model of none of them.")
    return found


def _built(name: str, build: Callable[..., Any], arguments: Mapping[str, Any]) -> nn.Module:
    try:
        model = build(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"Expected arguments that {name} can be built from: {first_line(error)}.") from error
    except (Exception, SystemExit) as error:
        if ":" not in name:
            raise
        found = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"Expected {name} to build a model, got {found}.") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"Expected {name} to build an nn.Module, got {type(model).__name__}.")
    if any(is_lazy(value) for value in (*model.parameters(), *model.buffers())):
        raise InputError(f"Expected {name} to build parameters with shapes, got lazy ones: show it an image first.")
    return model


def _register_own() -> None:
    for module in _OWN:
        importlib.import_module(module)


def task_of(spec: ModelSpec) -> Task:
    """Return the task of a model; InputError when its family is unknown or its arguments make no sense."""
    return look_up(_TASKS, "the task", family_of(spec.name).task)(spec)


def takes_argument(name: str, argument: str) -> bool:
    """Return whether a family's factory has a parameter of that name."""
    return _has_parameter(family_of(name).build, argument)


def usual_argument(name: str, argument: str) -> Any:
    """Return what a family's factory takes where an argument is not given; None if it has no such default."""
    parameter = _parameters(family_of(name).build).get(argument)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def _has_parameter(build: Callable[..., Any], name: str) -> bool:
    return name in _parameters(build)


def _parameters(build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(build).parameters
    except (TypeError, ValueError):  # of code that is not Python's
        return {}


def load_plugin(module: str) -> None:
    """Import a user's module, also one in the working directory; it registers what it adds.

    Raises:
        InputError: When it cannot be imported, in one sentence.
    """
    _imported(module, "--plugin")
    _PLUGINS.add(module)


def _imported(module: str, option: str) -> ModuleType:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last: it hides nothing that is installed
    try:
        return importlib.import_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever a module's code raises is what its author must see
        raise InputError(f"{option}: expected a module to import, got {module!r}: {first_line(error)}.") from error
