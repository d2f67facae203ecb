"""What do DeepLIFT scores of all layers cost, beside one training pass and beside Captum?

    python -m bench.deeplift --threads 2 --images 4 >> rows.jsonl

YOLOv3 with random weights; the target is the sum of all logits. Rows, in seconds and in the process's CPU seconds (to
trust where the machine is busy) per batch of N images:

* `training_pass`: one forward and backward pass, weight gradients included, of the doubled batch [x; x_ref];
* `deeplift`: scores of all 75 convolutions, with one reference for all images (zeros, data mean), and with one for
  each (a clean image for an attacked one), and its ratio to the training pass;
* `captum`: LayerDeepLift and a weight gradient for some layers evenly spread over the net, after a check that both
  give the same; `all_layers_s` extrapolates their mean to 75 layers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from captum.attr import LayerDeepLift
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from bench.scripts import begin, command_line, print_row
from prunekit.comparison import relative_rms
from prunekit.detection import yolov3
from prunekit.prune.deeplift import Comparison, deeplift_contributions, deeplift_scores
from prunekit.prune.layers import prunable_layers

# Float32 through 75 layers: Captum and prunekit round differently.
LARGEST_DIFFERENCE = 1e-2


def main() -> None:
    """Print JSON lines: the environment, the passes in turn, Captum layer by layer."""
    parser = command_line(__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--image-size", type=int, default=416)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--captum-layers", type=int, default=5)
    arguments = parser.parse_args()
    begin(**vars(arguments))
    torch.manual_seed(0)
    net = yolov3().eval()
    x, x_ref = torch.rand(2, arguments.images, 3, arguments.image_size, arguments.image_size)
    timings = time_passes(net, x, x_ref, arguments.runs)
    baseline = timings["training_pass"]
    for name, timing in timings.items():
        ratios = {"ratio": timing.seconds / baseline.seconds, "cpu_ratio": timing.cpu_seconds / baseline.cpu_seconds}
        print_row({"pass": name, **timing._asdict(), **ratios})
    layers = list(prunable_layers(net))
    chosen = layers[:: max(1, len(layers) // arguments.captum_layers)][: arguments.captum_layers]
    rows = [time_captum(net, name, x, x_ref) for name in chosen]
    mean = Elapsed(*(statistics.mean(values) * len(layers) for values in zip(*rows, strict=True)))
    print_row({"captum": f"all {len(layers)} layers, extrapolated", **mean._asdict()})


class Elapsed(NamedTuple):
    """Wall-clock seconds and the process's CPU seconds."""

    seconds: float
    cpu_seconds: float


def sum_of_logits(outputs: tuple[Tensor, ...]) -> Tensor:
    """Return the sum over all heads, [N]."""
    return torch.stack([head.flatten(1).sum(dim=1) for head in outputs]).sum(dim=0)


def time_passes(net: nn.Module, x: Tensor, x_ref: Tensor, runs: int) -> dict[str, Elapsed]:
    """Return the medians of each pass; completeness is checked in every DeepLIFT run."""

    def training_pass() -> None:
        net.zero_grad()
        sum_of_logits(net(torch.cat([x, x_ref]))).sum().backward()  # type: ignore[no-untyped-call]

    return seconds_in_turn(
        {
            "training_pass": training_pass,
            "deeplift, shared reference": lambda: deeplift_scores(net, [Comparison(x, x_ref[:1], sum_of_logits)]),
            "deeplift, reference per image": lambda: deeplift_scores(net, [Comparison(x, x_ref, sum_of_logits)]),
        },
        runs,
    )


def seconds_in_turn(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, Elapsed]:
    """Time calls that need gradients in turn, after one warm-up of each; return medians."""
    elapsed: dict[str, list[Elapsed]] = {name: [] for name in calls}
    for _ in range(1 + runs):
        for name, call in calls.items():
            elapsed[name].append(measure(call))
    return {
        name: Elapsed(*(statistics.median(values) for values in zip(*rows[1:], strict=True)))
        for name, rows in elapsed.items()
    }


def measure(call: Callable[[], object]) -> Elapsed:
    """Time one call."""
    start, cpu_start = time.perf_counter(), time.process_time()
    call()
    return Elapsed(time.perf_counter() - start, time.process_time() - cpu_start)


def time_captum(net: nn.Module, layer: str, x: Tensor, x_ref: Tensor) -> Elapsed:
    """Check one layer's contributions against Captum's on one image, then time Captum on all; print a row."""
    one, one_ref = x[:1], x_ref[:1]
    expected = captum_contributions(net, layer, one, one_ref, sum_of_logits)
    found = deeplift_contributions(net, Comparison(one, one_ref, sum_of_logits)).layers[layer]
    difference = relative_rms(expected, found)
    if difference > LARGEST_DIFFERENCE:
        raise RuntimeError(f"Captum's contributions of {layer} differ by {difference:.2e}: nothing to time.")
    elapsed = measure(lambda: captum_contributions(net, layer, x, x_ref, sum_of_logits))
    print_row({"captum": layer, **elapsed._asdict(), "difference": difference})
    return elapsed


class _Explained(nn.Module):
    """A model and its target as one module, as Captum wants it."""

    def __init__(self, model: nn.Module, target: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        return self.target(self.model(x))


def captum_contributions(
    model: nn.Module, layer: str, x: Tensor, x_ref: Tensor, target: Callable[[Any], Tensor]
) -> Tensor:
    """Return the signed contributions [N, K, C, R, S] of one convolution.

    Args:
        model: in eval mode; Captum knows modules only, each called once.
        layer: the convolution's name.
        x: images [N, ...].
        x_ref: references [N, ...].
        target: maps outputs to one number per image; it must not care how many images there are.
    """
    conv = model.get_submodule(layer)
    assert isinstance(conv, nn.Conv2d)
    multipliers = LayerDeepLift(_Explained(model, target), conv, multiply_by_inputs=False).attribute(x, x_ref)
    delta = _input_of(model, conv, x) - _input_of(model, conv, x_ref)
    weight = conv.weight.detach()
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    gradients = [
        conv2d_weight(delta[n : n + 1], list(weight.shape), multipliers[n : n + 1], *geometry)  # type: ignore[no-untyped-call]
        for n in range(len(x))
    ]
    return torch.stack(gradients).detach() * weight


def _input_of(model: nn.Module, conv: nn.Conv2d, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0]


if __name__ == "__main__":
    main()
