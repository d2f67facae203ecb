"""The check itself: each kind of change is seen, and what does not change anything is not called a change."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.untouched import differences, snapshot, untouched


class Net(nn.Module):
    """A parameter, a buffer, a parametrization and a nested module of each kind that may change."""

    scratch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU()
        self.tail = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 2, 1)))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.tail(self.relu(self.norm(self.conv(x)))))


def _add_to(net: Net, name: str) -> None:
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    with torch.no_grad():
        tensors[name].view(-1)[:1] += 1


def _replace_parameter(net: Net) -> None:
    net.conv.weight = nn.Parameter(net.conv.weight.detach().clone())


def _negate_zero(net: Net) -> None:
    assert net.conv.bias is not None
    net.conv.bias.data.neg_()


CHANGES: dict[str, Callable[[Net], object]] = {
    "parameter": lambda net: _add_to(net, "conv.weight"),
    "negative zero": _negate_zero,
    "parametrization's parameter": lambda net: _add_to(net, "tail.0.parametrizations.weight.original0"),
    "parameter replaced by its copy": _replace_parameter,
    "buffer": lambda net: _add_to(net, "norm.running_mean"),
    "integer buffer": lambda net: _add_to(net, "norm.num_batches_tracked"),
    "buffer outside the state dict": lambda net: _add_to(net, "scratch"),
    "requires_grad": lambda net: net.conv.weight.requires_grad_(False),
    "grad": lambda net: setattr(net.conv.weight, "grad", torch.ones(3, 2, 3, 3)),
    "mode": lambda net: net.norm.eval(),
    "momentum": lambda net: setattr(net.norm, "momentum", 0.2),
    "new attribute": lambda net: setattr(net.norm, "note", 1),
    "forward replaced": lambda net: setattr(net.norm, "forward", lambda x: x),
    "hook": lambda net: net.tail.register_forward_hook(lambda *_: None),
    "tensor hook": lambda net: net.conv.weight.register_hook(lambda grad: grad),  # type: ignore[no-untyped-call]
    "hook after accumulation": lambda net: net.conv.weight.register_post_accumulate_grad_hook(lambda _: None),  # type: ignore[no-untyped-call]
    "class": lambda net: nn.utils.parametrize.remove_parametrizations(net.tail[0], "weight"),
    "module replaced": lambda net: setattr(net, "relu", nn.ReLU()),
    "memory format": lambda net: net.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "torch's random state": lambda net: torch.rand(1),
    "NumPy's random state": lambda net: np.random.rand(),  # noqa: NPY002 (the global state is what is watched)
    "Python's random state": lambda net: random.random(),
    "grad mode": lambda net: torch.set_grad_enabled(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_kind_of_change_is_seen(change: str) -> None:
    net = Net()
    before = snapshot(net)
    try:
        CHANGES[change](net)
        assert differences(before, snapshot(net))
    finally:
        torch.set_grad_enabled(True)


def test_a_forward_in_eval_mode_and_a_look_at_the_weights_change_nothing() -> None:
    net = Net().eval()
    x = torch.full((1, 2, 5, 5), float("nan"))
    with untouched(net, {"x": [x]}):
        net(x).isnan()
        net.state_dict()


def test_inputs_in_containers_are_watched_also_when_the_block_raises() -> None:
    x = torch.zeros(2)

    def write_and_fail() -> None:
        with untouched({"x": (x,)}):
            x[0] = 1
            raise RuntimeError

    with pytest.raises(AssertionError, match=r"'x'.*bytes.*\n.*RuntimeError"):
        write_and_fail()


def test_optimizers_and_generators_are_watched() -> None:
    net, generator = nn.Linear(2, 2), torch.Generator()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    before = snapshot(optimizer, generator)
    optimizer.param_groups[0]["lr"] = 0.2
    torch.rand(1, generator=generator)
    changed = differences(before, snapshot(optimizer, generator))
    assert ["'lr'" in changed[0], "random state" in changed[1]] == [True, True], changed


def test_watching_nothing_is_an_error() -> None:
    with pytest.raises(AssertionError), untouched(3):
        pass
