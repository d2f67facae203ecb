"""Eval mode: whatever the module does in eval() or train(), it is as it was afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from prunekit.nn.evaluating import evaluating, set_eval_mode


class Adapter(nn.Module):
    """Merges its second weight into its first in eval mode, as low-rank adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.extra, self.merged = nn.Linear(3, 3), nn.Parameter(torch.rand(3, 3)), False
        self.drop = nn.Dropout()

    def train(self, mode: bool = True) -> Adapter:
        super().train(mode)
        if not mode and not self.merged:
            self.layer.weight.data += self.extra
            self.merged, self.note = True, "merged"
            self.register_buffer("seen", torch.ones(1))
        return self

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.layer(x))
        return y


class Refusing(nn.Sequential):
    """Raises at train() and at eval()."""

    def train(self, mode: bool = True) -> Refusing:
        raise NotImplementedError("train() is not supported")


def _state(model: nn.Module) -> list[object]:
    names = [(name, sorted(vars(module)), module.training) for name, module in model.named_modules()]
    return [names, {name: t.clone() for name, t in model.state_dict().items()}]


def _assert_same(a: list[object], b: list[object]) -> None:
    assert a[0] == b[0]
    torch.testing.assert_close(a[1], b[1], rtol=0, atol=0)


def test_flags_of_every_module_come_back_also_when_something_raises() -> None:
    noise = nn.Dropout()
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(2), noise).eval())
    noise.train()
    before = _state(model)

    def fail() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    _assert_same(_state(model), before)


def test_work_done_in_eval_is_undone() -> None:
    adapter = Adapter()
    model = nn.Sequential(adapter, nn.Dropout())
    before = _state(model)
    with evaluating(model):
        assert adapter.merged
        assert not adapter.drop.training
    _assert_same(_state(model), before)
    assert not adapter.merged
    assert not hasattr(adapter, "note")


def test_a_module_that_refuses_is_put_into_eval_mode_by_its_flags() -> None:
    model = nn.Sequential(Refusing(nn.Dropout(), nn.Linear(2, 2)))
    before = _state(model)
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert torch.equal(model(torch.ones(1, 2)), model(torch.ones(1, 2)))
    _assert_same(_state(model), before)


def test_a_class_that_keeps_noise_in_eval_mode_is_believed() -> None:
    class Noisy(nn.Sequential):
        def train(self, mode: bool = True) -> Noisy:
            super().train(mode)
            self[0].train(True)
            return self

    model = Noisy(nn.Dropout(), nn.Linear(2, 2))
    with evaluating(model):
        assert [module.training for module in model.modules()] == [False, True, False]
    assert all(module.training for module in model.modules())


def test_exported_and_scripted_modules() -> None:
    net, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout()).train(), torch.rand(1, 1, 4, 4)
    exported = torch.export.export(copy.deepcopy(net).eval(), (x,)).module()
    scripted, frozen = torch.jit.script(net), torch.jit.freeze(torch.jit.script(copy.deepcopy(net).eval()))
    for model in (exported, scripted, frozen):
        flags = [getattr(module, "training", None) for module in model.modules()]
        with torch.no_grad(), evaluating(model):
            assert torch.equal(model(x), model(x))
        assert [getattr(module, "training", None) for module in model.modules()] == flags
        set_eval_mode(model)
        assert not any(getattr(module, "training", False) for module in model.modules())
