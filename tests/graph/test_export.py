"""The one place that calls torch.export."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from prunekit.graph.export import exported
from tests.support import ROOT


class Noisy(nn.Module):
    """Warns and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("it warns", UserWarning, stacklevel=1)
        noisy: Tensor = self.norm(self.conv(x + torch.rand_like(x)))
        return noisy


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_no_other_module_calls_torch_export() -> None:
    callers = [path for path in (ROOT / "prunekit").rglob("*.py") if "export.export(" in path.read_text()]
    assert callers == [ROOT / "prunekit" / "graph" / "export.py"]


def test_exporting_is_silent_and_leaves_the_model_and_the_random_numbers_alone(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    model = Noisy().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes, state = set(vars(model)), torch.get_rng_state()
    program = exported(model, [torch.zeros(1, 3, 4, 4)])
    assert torch.equal(torch.get_rng_state(), state)
    assert set(vars(model)) == attributes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [str(warning.message) for warning in recwarn] == []
    assert "".join(capfd.readouterr()) == ""
    assert any("conv2d" in str(node.target) for node in program.graph.nodes)


def test_what_goes_wrong_is_raised_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception, match=r"."):
        exported(Deciding(), [torch.zeros(1, 3)])
    assert "".join(capfd.readouterr()) == ""
