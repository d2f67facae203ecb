"""`prunekit explain`: why a pruned net is not faster, layer by layer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import nn

import prunekit
from prunekit.benchmark import NETS, Row, Settings
from prunekit.benchmark.explanation import Explanation, explain_model, explain_report
from prunekit.benchmark.machine import Machine
from prunekit.benchmark.measure import Group, measure_group
from prunekit.benchmark.problems import Problem, prune_by_magnitude, random_image
from prunekit.cli.ending import Verbose, error_console, out_console, user_errors
from prunekit.cli.explain_tables import layers_table, peers_table, shares_table, summary
from prunekit.console import ConsoleProgress
from prunekit.engine.model import AcceleratedModel
from prunekit.environment import thread_count
from prunekit.errors import InputError
from prunekit.files import write_text
from prunekit.nn import AccelerationReport
from prunekit.pipeline.checkpoint import open_checkpoint, requested_spec, spec_of
from prunekit.processor import processor
from prunekit.progress import Progress
from prunekit.prune import apply_masks, prunable_layers, sparsity
from prunekit.task import models, task_of

EXPLAIN_EXAMPLES = """
Examples:

  prunekit explain --model yolov3-tiny --weights yolov3-tiny.weights --ratio 90

  prunekit explain --weights runs/finetuned/model.safetensors --threads 1 --json why.json

  prunekit explain --model resnet50 --ratio 95 --no-peers

  prunekit explain fast.safetensors --image-size 320

The last one is a file written by prunekit.save; it is measured as it is, without dense engines. --ratio prunes by
magnitude, which is enough to see the speed, but not the loss of accuracy.
"""

_FORMAT = "prunekit-explain-1"
_PEERS = ("eager", "folded", "compile", "onnxruntime", "openvino")
_RUNS = 10
# The tables' width where nothing says how wide the terminal is.
_WIDTH = 150
_LARGEST_SIZE = 4096


@dataclass(frozen=True)
class _Subject:
    """What is explained.

    Attributes:
        model: A name in `NETS`.
        width: Share of its channels.
        net: The net as it shall be fast.
        ratio: Percent of its convolutions' weights that are zero.
        dense: The weights before `--ratio` took some, for the dense engines.
    """

    model: str
    width: float
    net: nn.Module
    ratio: float
    dense: nn.Module


def explain_command(
    file: Annotated[Path | None, typer.Argument(help="model written by prunekit.save, instead of --model")] = None,
    model: Annotated[str | None, typer.Option(help=f"network: {', '.join(NETS)}")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="detector weights: darknet .weights or .safetensors written by prunekit (default: random)"),
    ] = None,
    width: Annotated[float | None, typer.Option(help="width multiplier of the network (default: 1)")] = None,
    num_classes: Annotated[int, typer.Option(help="number of classes of a darknet file")] = 80,
    ratio: Annotated[
        float | None, typer.Option(help="prune this percentage of each convolution's weights first")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="image size in pixels (default: 416 for detectors, 224 for classifiers, the file's own)"),
    ] = None,
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
        if json_file is not None and json_file.is_dir():
            raise InputError(f"--json: expected a file to write, got a folder: {json_file}.")
        if threads is not None and not 1 <= threads <= 1024:
            raise InputError(f"--threads: expected a whole number from 1 to 1024, got {threads}.")
        with thread_count(threads):
            if file is not None:
                given = {"--model": model, "--weights": weights, "--width": width, "--ratio": ratio, "--peers": peers}
                _refuse_beside_a_file([name for name, value in given.items() if value])
                title, explanation, rows = str(file), _explain_file(file, image_size), list[Row]()
            else:
                subject = _subject(model, weights, width, num_classes, ratio)
                size = NETS[subject.model].image_size if image_size is None else image_size
                settings = _settings(subject, size, peers is not False, runs)
                title = f"{subject.model}, {subject.ratio:.3g} % zeros, {size}×{size}"
                with ConsoleProgress(error_console) as progress:
                    explanation = _explain_net(subject, size, progress)
                    rows = [] if peers is False else _time_peers(subject, settings, size, progress)
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


def _subject(
    model: str | None, weights: Path | None, width: float | None, num_classes: int, ratio: float | None
) -> _Subject:
    """Read or draw the weights, and prune them.

    Raises:
        InputError: something is missing, unknown, out of its range, or does not fit together.
    """
    is_detector = model is None or model in models()
    spec = spec_of(weights) if weights is not None and is_detector else None
    if spec is not None:
        model = model or spec.name
        width = spec.arguments.get("width") if width is None else width
    if model is None:
        raise InputError("Expected a net (--model) or a file that prunekit.save wrote, got neither.")
    width = 1.0 if width is None else width
    _check(model, width, ratio)
    torch.manual_seed(0)
    if weights is None:
        net: nn.Module = NETS[model].build(width=width).eval()
    elif model not in models():
        raise InputError(f"--weights: expected with a detector ({', '.join(models())}), got with {model}.")
    else:
        classes = {} if spec is not None else {"num_classes": num_classes}
        opened = open_checkpoint(weights, task_of(requested_spec(model, width, spec).updated(**classes)))
        net = opened.model
        if opened.masks:
            apply_masks(net, opened.masks)
    dense = net.requires_grad_(False)
    net = prune_by_magnitude(copy.deepcopy(dense), ratio) if ratio else dense
    zeros = 100 * sparsity({name: conv.weight != 0 for name, conv in prunable_layers(net).items()})
    return _Subject(model, width, net, zeros, dense)


def _check(model: str, width: float, ratio: float | None) -> None:
    if model not in NETS:
        raise InputError(f"--model: expected one of {', '.join(NETS)}, got {model!r}.")
    if not 0 < width <= 4:
        raise InputError(f"--width: expected a number above 0, at most 4, got {width}.")
    if ratio is not None and not 0 <= ratio < 100:
        raise InputError(f"--ratio: expected a percentage from 0 to below 100, got {ratio}.")


def _settings(subject: _Subject, size: int, with_peers: bool, runs: int) -> Settings:
    """Return the bench to run; making it checks the size and the number of runs."""
    ratio = min(subject.ratio, 99.99)
    names = _PEERS if with_peers else ()
    return Settings(
        "end-to-end", (subject.model,), (torch.get_num_threads(),), (ratio,), names, runs, subject.width, size
    )


def _explain_net(subject: _Subject, size: int, progress: Progress) -> Explanation:
    x = random_image(size)
    fast = prunekit.accelerate(subject.net, x, progress=_bar(progress))
    report = fast.report
    assert isinstance(report, AccelerationReport)
    return explain_report(report)


def _explain_file(file: Path, size: int | None) -> Explanation:
    if size is not None and not 1 <= size <= _LARGEST_SIZE:
        raise InputError(f"--image-size: expected from 1 to {_LARGEST_SIZE} pixels, got {size}.")
    fast = prunekit.load(file)
    assert isinstance(fast, AcceleratedModel)
    generator = torch.Generator().manual_seed(0)
    return explain_model(fast, [torch.rand(_resized(shape, size), generator=generator) for shape in fast.example])


def _resized(shape: list[int], size: int | None) -> list[int]:
    return shape if size is None or len(shape) != 4 else [*shape[:2], size, size]


def _time_peers(subject: _Subject, settings: Settings, size: int, progress: Progress) -> list[Row]:
    """Time dense engines on the unpruned weights in turn with the pruned net, which finds its cuts in the cache."""
    problem = Problem(random_image(size), lambda ratio: subject.net if ratio else subject.dense)
    return measure_group(Group(settings, Machine.here(), subject.model, settings.threads[0], size, problem), progress)


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
        console.print(line, highlight=False)
