"""`prunekit explain`: why a pruned net is not faster, layer by layer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

import prunekit
from prunekit.benchmark import Row, Settings
from prunekit.benchmark.explanation import Explanation, explain_model, explain_report
from prunekit.benchmark.machine import Machine
from prunekit.benchmark.measure import Group, measure_group
from prunekit.benchmark.peers import FLOAT32_PEERS
from prunekit.benchmark.problems import Problem, prune_by_magnitude, random_image
from prunekit.classification.blocks import SMALL_IMAGE
from prunekit.cli.ending import Verbose, error_console, out_console, user_errors
from prunekit.cli.explain_tables import layers_table, peers_table, shares_table, summary
from prunekit.cli.options import option_help
from prunekit.console import ConsoleProgress
from prunekit.engine.model import AcceleratedModel
from prunekit.environment import thread_count
from prunekit.errors import InputError, first_line
from prunekit.files import check_writable_file, write_text
from prunekit.nn import AccelerationReport
from prunekit.pipeline.checkpoint import Checkpoint, open_checkpoint, requested_spec, spec_of, untrained
from prunekit.pipeline.choices import WEIGHTS, architectures, wrong_image_size
from prunekit.pipeline.own_models import model_arguments, name_own_model
from prunekit.processor import processor
from prunekit.progress import Progress
from prunekit.prune import apply_masks, prunable_layers, sparsity
from prunekit.task import ModelSpec, load_plugin, models, takes_argument, task_of, usual_argument

EXPLAIN_EXAMPLES = """
Examples:

  prunekit explain --model yolov3-tiny --weights yolov3-tiny.weights --ratio 90

  prunekit explain --weights runs/finetuned/model.safetensors --threads 1 --json why.json

  prunekit explain --model resnet50 --ratio 95 --no-peers

  prunekit explain --model mynet:small --model-args channels=16 --weights runs/tuned/model.safetensors --image-size 32

  prunekit explain fast.safetensors --image-size 320

The last one is a file written by prunekit.save; it is measured as it is, without dense engines. --ratio prunes by
magnitude, which is enough to see the speed, but not the loss of accuracy.
"""

_FORMAT = "prunekit-explain-1"
_PEERS = FLOAT32_PEERS
_RUNS = 10
# The tables' width where nothing says how wide the terminal is.
_WIDTH = 150
_LARGEST_SIZE = 4096
# What the benches call a network that no task has a name for.
_OF_BENCHES = {"vgg16": "prunekit.classification:vgg16"}
_CLASSES = 80  # of a network of random weights that has no usual number


@dataclass(frozen=True)
class _Subject:
    """What is explained.

    Attributes:
        model: What builds the net.
        image_size: The side of its input in pixels.
        net: The net as it shall be fast.
        ratio: Percent of its convolutions' weights that are zero.
        dense: The weights before `--ratio` took some, for the dense engines.
    """

    model: ModelSpec
    image_size: int
    net: nn.Module
    ratio: float
    dense: nn.Module


def explain_command(
    file: Annotated[Path | None, typer.Argument(help="model written by prunekit.save, instead of --model")] = None,
    model: Annotated[str | None, typer.Option(help=f"{architectures()} (default: from .safetensors weights)")] = None,
    model_args: Annotated[list[str] | None, typer.Option(help=option_help("model_args"))] = None,
    task: Annotated[str | None, typer.Option(help=option_help("task"))] = None,
    weights: Annotated[Path | None, typer.Option(help=f"{WEIGHTS} (default: random)")] = None,
    width: Annotated[float | None, typer.Option(help="width multiplier of the network (default: 1)")] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(help="number of classes of random weights (default: the network's usual one, else 80)"),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="prune this percentage of each convolution's weights first")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="image size in pixels (default: that of the network's usual images, the file's own)"),
    ] = None,
    plugin: Annotated[list[str] | None, typer.Option(help="module of yours that registers the model")] = None,
    threads: Annotated[int | None, typer.Option(help="number of torch threads (default: torch's choice)")] = None,
    peers: Annotated[
        bool | None,
        typer.Option("--peers/--no-peers", help="time dense engines in the same run (default: yes, except for a file)"),
    ] = None,
    runs: Annotated[int, typer.Option(help="timed runs of each dense engine")] = _RUNS,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write all results to this JSON file")] = None,
    verbose: Verbose = False,
) -> None:
    """Explain why a pruned network is not faster: what each layer costs, what limits it, and what would help."""
    with user_errors(verbose):
        if json_file is not None:
            check_writable_file(json_file, "--json")
        if threads is not None and not 1 <= threads <= 1024:
            raise InputError(f"--threads: expected a whole number from 1 to 1024, got {threads}.")
        with thread_count(threads):
            if file is not None:
                given = {"--model": model, "--weights": weights, "--width": width, "--ratio": ratio, "--peers": peers}
                _refuse_beside_a_file([name for name, value in given.items() if value])
                title, explanation, rows = str(file), _explain_file(file, image_size), list[Row]()
            else:
                for module in plugin or ():
                    load_plugin(module)
                model = _OF_BENCHES.get(model or "", model)
                name_own_model(model, task, model_args or ())
                _check(width, ratio, image_size)
                dense = _opened(model, weights, width, model_arguments(model_args or ()), num_classes, image_size)
                subject = _subject(dense, ratio, image_size)
                settings = _settings(subject, peers is not False, runs)
                size = subject.image_size
                title = f"{subject.model.name}, {subject.ratio:.3g} % zeros, {size}×{size}"
                with ConsoleProgress(error_console) as progress:
                    explanation = _explain_net(subject, progress)
                    rows = [] if peers is False else _time_peers(subject, settings, progress)
        if json_file is not None:
            found = {"format": _FORMAT, "title": title, "processor": asdict(processor()), **explanation.to_json()}
            found["dense_engines"] = [row.model_dump() for row in rows]
            write_text(json_file, json.dumps(found, indent=1) + "\n")
        _show(title, explanation, rows)


def _refuse_beside_a_file(names: list[str]) -> None:
    if names:
        raise InputError(
            f"Expected a file that prunekit.save wrote by itself, got {', '.join(names)} beside it: "
            "the file has its own weights, and no dense twin to compare with."
        )


def _check(width: float | None, ratio: float | None, size: int | None) -> None:
    if width is not None and not 0 < width <= 4:
        raise InputError(f"--width: expected a number above 0, at most 4, got {width}.")
    if ratio is not None and not 0 <= ratio < 100:
        raise InputError(f"--ratio: expected a percentage from 0 to below 100, got {ratio}.")
    if size is not None and not 1 <= size <= _LARGEST_SIZE:
        raise InputError(f"--image-size: expected from 1 to {_LARGEST_SIZE} pixels, got {size}.")


def _opened(
    model: str | None,
    weights: Path | None,
    width: float | None,
    arguments: Mapping[str, Any],
    num_classes: int | None,
    size: int | None,
) -> Checkpoint:
    """Read a model's weights, or draw them.

    Raises:
        InputError: something is missing, unknown, or does not fit together.
    """
    found = spec_of(weights, model) if weights is not None else None
    name = model or (found.name if found is not None else None)
    if name is None:
        raise InputError("Expected a net (--model) or a file that prunekit.save wrote, got neither.")
    if ":" not in name and name not in models():
        raise InputError(f"--model: expected one of {', '.join(models())}, got {name!r}.")
    spec = requested_spec(name, width, found, arguments)
    if weights is None:
        return untrained(task_of(spec.updated(**_unsaid(spec, num_classes, size))), seed=0)
    task = task_of(spec)
    return open_checkpoint(weights, task.for_weights(weights) if found is None else task)


def _unsaid(spec: ModelSpec, num_classes: int | None, size: int | None) -> dict[str, Any]:
    """Return what data or weights say of a model elsewhere: the number of its classes, and the form of its stem."""
    usual = partial(usual_argument, spec.name)
    unsaid = {"num_classes": num_classes or usual("num_classes") or _CLASSES}
    unsaid["small_images"] = usual("small_images") if size is None else size <= SMALL_IMAGE
    return {
        argument: value
        for argument, value in unsaid.items()
        if takes_argument(spec.name, argument) and argument not in spec.arguments
    }


def _subject(opened: Checkpoint, ratio: float | None, image_size: int | None) -> _Subject:
    """Prune a model, and make sure that it takes images of the size."""
    size = opened.task.image_size if image_size is None else image_size
    if wrong := wrong_image_size(size, opened.task):
        raise InputError(f"{wrong}.")
    if opened.masks:
        apply_masks(opened.model, opened.masks)
    dense, spec = opened.model.requires_grad_(False), opened.task.spec
    try:
        dense(random_image(size))
    except Exception as error:  # whatever a network of another size stumbles over
        found = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"--image-size: expected a size that {spec.name} takes, got {size}: {found}.") from error
    net = prune_by_magnitude(copy.deepcopy(dense), ratio) if ratio else dense
    zeros = 100 * sparsity({name: conv.weight != 0 for name, conv in prunable_layers(net).items()})
    return _Subject(spec, size, net, zeros, dense)


def _settings(subject: _Subject, with_peers: bool, runs: int) -> Settings:
    """Return the bench to run, which has its net already; making it checks the number of runs."""
    ratio, width = min(subject.ratio, 99.99), subject.model.arguments.get("width", 1.0)
    return Settings("end-to-end", (), (torch.get_num_threads(),), (ratio,), _PEERS if with_peers else (), runs, width)


def _explain_net(subject: _Subject, progress: Progress) -> Explanation:
    fast = prunekit.accelerate(subject.net, random_image(subject.image_size), progress=_bar(progress))
    report = fast.report
    assert isinstance(report, AccelerationReport)
    return explain_report(report)


def _explain_file(file: Path, size: int | None) -> Explanation:
    _check(None, None, size)
    fast = prunekit.load(file)
    assert isinstance(fast, AcceleratedModel)
    generator = torch.Generator().manual_seed(0)
    return explain_model(fast, [torch.rand(_resized(shape, size), generator=generator) for shape in fast.example])


def _resized(shape: list[int], size: int | None) -> list[int]:
    return shape if size is None or len(shape) != 4 else [*shape[:2], size, size]


def _time_peers(subject: _Subject, settings: Settings, progress: Progress) -> list[Row]:
    """Time dense engines on the unpruned weights in turn with the pruned net, which finds its cuts in the cache."""
    size = subject.image_size
    problem = Problem(random_image(size), lambda ratio: subject.net if ratio else subject.dense)
    group = Group(settings, Machine.here(), subject.model.name, settings.threads[0], size, problem)
    return measure_group(group, progress)


def _bar(progress: Progress) -> Callable[[int, int], None]:
    """Return what draws a bar when it is told how far the tuning is."""
    bar: Iterator[int] | None = None
    shown = 0

    def show(done: int, total: int) -> None:
        nonlocal bar, shown
        if bar is None:
            bar = iter(progress.track(range(total), "tuning convolutions", total))
            next(bar, None)
        while shown < done:
            next(bar, None)
            shown += 1

    return show


def _show(title: str, found: Explanation, rows: list[Row]) -> None:
    console = out_console if out_console.is_terminal else Console(width=_WIDTH)
    console.print(layers_table(title, found))
    if found.shares:
        console.print(shares_table(found))
    if rows:
        console.print(peers_table(rows))
    for line in summary(found, rows):
        console.print(line, highlight=False, markup=False)
