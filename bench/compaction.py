"""How much faster is a net without its masked filters, and is it still the same net?

    python -m bench.compaction speed --model yolov3 --ratios 25,50,75,95 --threads 1
    python -m bench.compaction torch-pruning --models resnet50,vgg16,mobilenetv2,yolov3 --ratio 50

`speed`: filters are masked group by group, BatchNorm's shifts stay, so that masked filters answer constants. The
compacted nets run in turn with the fastest dense forms of the unpruned one; nothing is timed before its outputs were
found equal to the masked net's.

`torch-pruning`: the same filters cut by Torch-Pruning along its own groups (pip install torch-pruning --no-deps), both
results in the same form, in turn. The outputs' distance from the masked net is a column, not a condition: it is not
0 for Torch-Pruning where masked filters answer constants ("live": only weights are masked). Where they are silent
("zero": biases and BatchNorm are masked with them), both cuts keep the same channels; else prunekit keeps carriers too.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import prunekit
from bench.scripts import Row, begin, command_line, print_row
from prunekit.benchmark.competition import Competitor, error_of, seconds_in_turn
from prunekit.benchmark.engines.calls import as_tuple
from prunekit.benchmark.peers import FLOAT32_PEERS, PEERS
from prunekit.benchmark.problems import NETS, random_image
from prunekit.compaction import Certificate, compact
from prunekit.comparison import relative_rms
from prunekit.progress import SilentProgress
from prunekit.prune import ChannelGroups, MaskRule, apply_masks, channel_groups, prunable_layers, score_model

ACCELERATED = "accelerate"


@dataclass(frozen=True)
class Masked:
    """A net with live BatchNorm shifts, its filters masked by magnitude, and its channel groups."""

    net: nn.Module
    groups: ChannelGroups
    masks: dict[str, Tensor]


def main() -> None:
    """Print JSON lines: the environment, then the rows."""
    arguments = parse_arguments()
    begin(arguments.threads)
    rows = measure_speed(arguments) if arguments.question == "speed" else compare(arguments)
    with torch.inference_mode(False), torch.no_grad():
        for row in rows:
            print_row(row)


def build(name: str) -> nn.Module:
    """Build a net of `NETS` whose BatchNorm has statistics that matter, without letting activations grow or fade."""
    torch.manual_seed(0)
    net = NETS[name].build().eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.8, 1.2)
            module.bias.normal_(std=0.3)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.normal_(std=0.3)
    _calibrate(net, random_image(NETS[name].image_size))
    return net


def _calibrate(net: nn.Module, x: Tensor) -> None:
    """Set running statistics to those of an image, as training does."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = None  # the plain average, here of one batch
        norm.reset_running_stats()
    net(torch.cat([x, x.flip(3)]))
    for norm in norms:
        norm.eval()
        norm.momentum = 0.1


def mask(net: nn.Module, image_size: int, ratio: float, is_silent: bool = False) -> Masked:
    """Mask `ratio` percent of each group's filters, lowest magnitudes first; silent ones with bias and BatchNorm."""
    groups = channel_groups(net, torch.zeros(1, 3, image_size, image_size))
    masks = MaskRule(ratio, "filter", groups=groups)(score_model(net, "magnitude"))
    masked = copy.deepcopy(net)
    apply_masks(masked, masks, groups if is_silent else None)
    return Masked(masked, groups, masks)


def measure_speed(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each competitor."""
    size = arguments.image_size or NETS[arguments.model].image_size
    x = random_image(size)
    dense = build(arguments.model)
    competitors = [] if arguments.only_compact else [_dense(dense, x, peer) for peer in arguments.dense.split(",")]
    certificates: dict[float, Any] = {}
    for ratio in map(float, arguments.ratios.split(",")):
        masked = mask(dense, size, ratio)
        small, certificates[ratio] = _compact(masked, x, ratio, arguments)
        if not arguments.only_compact:
            competitors += _compacted(masked, small, x, ratio, arguments.forms.split(","))
    if arguments.only_compact:
        return
    yield from _timed(competitors, certificates, arguments)


def _dense(net: nn.Module, x: Tensor, peer: str) -> Competitor:
    name = f"dense, {PEERS[peer].name}"
    return Competitor(name, "peer", 0.0, PEERS[peer].build(net, x), as_tuple(net(x)), 1.0, 0, 0)


def _compact(masked: Masked, x: Tensor, ratio: float, arguments: argparse.Namespace) -> tuple[nn.Module, Certificate]:
    """Compact a net, or read what an earlier run kept in the folder."""
    rounding = arguments.multiple_of or "measured"
    file = arguments.folder and arguments.folder / f"{arguments.model}-{x.shape[2]}-{ratio:g}-{rounding}.prunekit"
    if file and file.is_file():
        small = prunekit.load(file)
        assert isinstance(small.certificate, Certificate)
        return small.requires_grad_(False), small.certificate
    result = compact(masked.net, x, multiple_of=arguments.multiple_of, latency_runs=3)
    if file:
        prunekit.save(result, file)
    return result.model, result.certificate


def _compacted(masked: Masked, small: nn.Module, x: Tensor, ratio: float, forms: Sequence[str]) -> Iterator[Competitor]:
    expected = as_tuple(masked.net(x))
    for form in forms:
        if form == ACCELERATED:
            fast = prunekit.accelerate(small, x, tuning_seconds=10.0)
            call: Callable[[], tuple[Tensor, ...]] = lambda fast=fast: as_tuple(fast(x))  # type: ignore[misc] # noqa: E731
            name = "compacted, prunekit.accelerate"
        else:
            call, name = PEERS[form].build(small, x), f"compacted, {PEERS[form].name}"
        yield Competitor(name, "prunekit", ratio, call, expected, 1.0, 0, 0)


def _timed(
    competitors: Sequence[Competitor], certificates: dict[float, Any], arguments: argparse.Namespace
) -> Iterator[Row]:
    errors = {}
    with torch.inference_mode():
        for competitor in competitors:
            error = error_of(competitor)
            if isinstance(error, str):
                raise RuntimeError(f"{competitor.label}: {error}")
            errors[competitor.label] = error
        calls = {competitor.label: competitor.call for competitor in competitors}
        seconds = seconds_in_turn(calls, arguments.runs, SilentProgress())
    ms = {label: float(np.median(values)) * 1e3 for label, values in seconds.items()}
    fastest = min((c.label for c in competitors if c.kind == "peer"), key=lambda label: ms[label])
    for competitor in competitors:
        row = {
            "model": arguments.model,
            "threads": arguments.threads,
            "ratio_percent": competitor.ratio,
            "form": competitor.name,
            "median_ms": ms[competitor.label],
            "p90_ms": float(np.percentile(seconds[competitor.label], 90)) * 1e3,
            "speedup": ms[fastest] / ms[competitor.label],
            "against": fastest,
            "relative_rms": errors[competitor.label],
        }
        if competitor.ratio in certificates:
            certificate = certificates[competitor.ratio]
            row |= {
                "float64_difference": certificate.max_difference_float64,
                "parameters": certificate.parameters_after,
                "macs": certificate.macs_after,
                "multiple_of": certificate.multiple_of,
                "carriers": sum(len(group.carriers) for group in certificate.groups),
            }
        yield row


def compare(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each net and kind of constants: both cuts' latency and distance from the masked net."""
    for name in arguments.models.split(","):
        x = random_image(arguments.image_size or NETS[name].image_size)
        net = build(name)
        for constants in arguments.constants.split(","):
            masked = mask(net, x.shape[2], arguments.ratio, is_silent=constants == "zero")
            row = {"model": name, "ratio_percent": arguments.ratio, "constants": constants}
            yield row | _compare(masked, x, arguments)


def _compare(masked: Masked, x: Tensor, arguments: argparse.Namespace) -> Row:
    ours = compact(masked.net, x, multiple_of=1, latency_runs=0).model
    nets = {"prunekit": ours, "torch-pruning": cut_by_torch_pruning(masked, x)}
    expected = as_tuple(masked.net(x))
    calls = {label: PEERS[arguments.form].build(net, x) for label, net in nets.items()}
    with torch.inference_mode():
        seconds = seconds_in_turn(calls, arguments.runs, SilentProgress())
    row: Row = {"form": PEERS[arguments.form].name, "threads": arguments.threads}
    for label, net in nets.items():
        pairs = zip(expected, as_tuple(net(x)), strict=True)
        row |= {
            f"{label} ms": float(np.median(seconds[label])) * 1e3,
            f"{label} filters": sum(len(conv.weight) for conv in prunable_layers(net).values()),
            f"{label} parameters": sum(parameter.numel() for parameter in net.parameters()),
            f"{label} relative_rms": max(relative_rms(a, b) for a, b in pairs),
        }
    return row


def cut_by_torch_pruning(masked: Masked, x: Tensor) -> nn.Module:
    """Cut the masked filters along Torch-Pruning's own groups."""
    import torch_pruning

    net = copy.deepcopy(masked.net).requires_grad_(True)
    layers = prunable_layers(net)
    with torch.enable_grad(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        graph = torch_pruning.DependencyGraph().build_dependency(net, example_inputs=x)
        for group in masked.groups.groups:
            dropped = (~masked.masks[group[0]].flatten(1).any(dim=1)).nonzero().flatten().tolist()
            if dropped and group[0] not in masked.groups.heads:
                graph.get_pruning_group(layers[group[0]], torch_pruning.prune_conv_out_channels, idxs=dropped).prune()
    return net.eval().requires_grad_(False)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    questions = parser.add_subparsers(dest="question", required=True)
    speed = questions.add_parser("speed")
    speed.add_argument("--model", default="yolov3", choices=NETS)
    speed.add_argument("--ratios", default="25,50,65,75,85,90,95")
    dense = f"forms of the dense net: {', '.join(FLOAT32_PEERS)}"
    speed.add_argument("--dense", default="eager,folded,compile", help=dense)
    speed.add_argument("--forms", default=f"folded,{ACCELERATED}", help="forms of the compacted net")
    speed.add_argument("--multiple-of", type=int, default=None)
    speed.add_argument("--folder", type=Path, help="keeps compacted nets for later runs")
    speed.add_argument("--only-compact", action="store_true", help="fill the folder, time nothing")
    peer = questions.add_parser("torch-pruning")
    peer.add_argument("--models", default="resnet50,vgg16,mobilenetv2,yolov3")
    peer.add_argument("--ratio", type=float, default=50.0)
    peer.add_argument("--constants", default="live,zero")
    peer.add_argument("--form", default="folded", choices=FLOAT32_PEERS)
    for question in (speed, peer):
        question.add_argument("--image-size", type=int, default=None)
        question.add_argument("--threads", type=int, default=1)
        question.add_argument("--runs", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
