"""What does a PGD step cost, relative to one forward and one backward pass down to the images?

    python -m bench.pgd_step --model yolov3-tiny --threads 1

The attack runs with 1 and with 1 + STEPS steps, in turn with STEPS bare passes. The difference of the first two is
STEPS steps without what an attack does once; `whole_attack_ratio` is per step of the longer one, with it.
"""

from __future__ import annotations

import torch

from bench.scripts import add_net_options, begin, command_line, net_facts, print_row, with_gradients
from prunekit.attacks import PgdConfig, pgd
from prunekit.detection import DetectionTask, Target
from prunekit.task import ModelSpec
from prunekit.timing import time_in_turn

STEPS = 5


def main() -> None:
    """Print JSON lines: the environment, then the costs."""
    parser = command_line(__doc__)
    add_net_options(parser, "yolov3-tiny", batch_size=4, runs=9)
    arguments = parser.parse_args()
    begin(arguments.threads)
    torch.manual_seed(0)
    spec = ModelSpec(arguments.model, {"num_classes": 80, "width": arguments.width})
    model = spec.build()
    generator = torch.Generator().manual_seed(0)
    size = arguments.image_size
    x = torch.rand(arguments.batch_size, 3, size, size, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    target = Target(torch.tensor([[0.2, 0.2, 0.5, 0.6], [0.4, 0.3, 0.9, 0.9]]) * size, torch.tensor([1, 17]))
    loss_per_image = DetectionTask(spec).attack_losses([target] * len(x)).total

    def bare_passes() -> None:
        for _ in range(STEPS):
            leaf = x.detach().requires_grad_()
            torch.autograd.grad(loss_per_image(model.eval()(leaf)).sum(), leaf)

    def attack(steps: int) -> None:
        pgd(model.train(), x, loss_per_image, PgdConfig(eps=0.05, step_size=0.02, steps=steps))

    calls = {
        "passes": with_gradients(bare_passes),
        "attack of 1": with_gradients(lambda: attack(1)),
        "attack of 1 + steps": with_gradients(lambda: attack(1 + STEPS)),
    }
    times = time_in_turn(calls, arguments.runs)
    step_ms = (times["attack of 1 + steps"].median_ms - times["attack of 1"].median_ms) / STEPS
    pass_ms = times["passes"].median_ms / STEPS
    row = {
        **net_facts(arguments),
        "forward_backward_ms": pass_ms,
        "pgd_step_ms": step_ms,
        "ratio": step_ms / pass_ms,
        "whole_attack_ratio": times["attack of 1 + steps"].median_ms / (1 + STEPS) / pass_ms,
    }
    print_row(row)


if __name__ == "__main__":
    main()
