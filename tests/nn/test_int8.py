"""accelerate in int8: what is chosen and told, what is asked of calibration inputs, and models that stay float32."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunekit
from prunekit.engine.calibration import observe
from prunekit.engine.interpreter import interpret, quantized_conv2d
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.quantizing import quantized_graph, values_to_observe
from prunekit.errors import InputError
from prunekit.nn import int8 as int8_module
from prunekit.nn.accelerate import accelerate_copy
from prunekit.nn.acceleration_report import AccelerationReport
from prunekit.nn.calls import Call
from prunekit.nn.candidates import Options
from prunekit.nn.int8 import LayerNoise, calibration_inputs, noise_of_layers
from prunekit.ops import native
from tests.engine.test_int8_graphs import float32_graph
from tests.support.oracles import relative_difference

pytestmark = [
    pytest.mark.skipif(not native.is_available(), reason="no native kernels"),
    pytest.mark.usefixtures("one_thread"),
]


class Small(nn.Module):
    """Three convolutions with BatchNorm, the last one a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.relu(self.second(F.leaky_relu(self.norm(self.first(x)), 0.1))))
        return y


@pytest.fixture(name="model")
def model_fixture() -> Small:
    torch.manual_seed(0)
    model = Small()
    with torch.no_grad():
        for buffer in (model.norm.running_mean, model.norm.running_var):
            assert buffer is not None
            buffer.uniform_(0.5, 2.0)
    return model.eval()


def images(count: int, seed: int = 0, side: int = 20) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def in_int8(model: nn.Module, x: Tensor, calibration: object) -> nn.Module:
    """Accelerate with int8 wherever it is possible, whatever is faster on this machine."""
    call = Call.of_example(model, x, None)
    options = Options(
        tuning_seconds=0.0, tuning_cache=None, calibration=calibration_inputs(calibration, call), only_faster_int8=False
    )
    with torch.no_grad():
        return accelerate_copy(copy.deepcopy(model), call, options)


def report_of(model: nn.Module) -> AccelerationReport:
    report = model.report
    assert isinstance(report, AccelerationReport)
    return report


def test_a_model_in_int8_is_near_the_original_and_says_what_it_is(model: Small) -> None:
    fast = in_int8(model, images(1), images(16, seed=1))
    report = report_of(fast)
    assert [row.precision for row in report.rows] == ["int8"] * 3
    assert all(row.scale and row.zero_point is not None for row in report.rows)
    assert all(20 < (row.signal_to_noise or 0) < 80 for row in report.rows)
    assert 0 < report.relative_rms < 0.05
    assert any("3 of 3 convolutions run in int8, calibrated on 16 inputs" in note for note in report.notes)
    assert "noise dB" in str(report)
    x = images(4, seed=2)
    with torch.no_grad():
        assert relative_difference(model(x), fast(x)) < 0.05


def test_the_model_and_the_calibration_inputs_stay_as_they_are(model: Small) -> None:
    before, given = copy.deepcopy(model.state_dict()), images(4)
    kept = given.clone()
    in_int8(model, images(1), given)
    assert torch.equal(given, kept)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_saved_model_in_int8_is_the_same_and_small(model: Small, tmp_path: Path) -> None:
    fast = in_int8(model, images(1), images(4))
    prunekit.save(fast, tmp_path / "int8.safetensors")
    again = prunekit.load(tmp_path / "int8.safetensors")
    assert torch.equal(fast(images(2)), again(images(2)))
    float32 = prunekit.accelerate(model, images(1), tuning_seconds=0.0, tuning_cache=None)
    assert isinstance(float32, AcceleratedModel)
    prunekit.save(float32, tmp_path / "float32.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("int8", "float32")]
    assert sizes[0] < sizes[1] + 4000  # names, scales


def test_any_iterable_of_arguments_calibrates_as_a_tensor_does(model: Small) -> None:
    def one_by_one() -> Iterator[Any]:
        for image in torch.split(images(4), 1):
            yield (image,)

    expected = in_int8(model, images(1), images(4))(images(2))
    assert torch.equal(in_int8(model, images(1), one_by_one())(images(2)), expected)
    assert torch.equal(in_int8(model, images(1), list(torch.split(images(4), 1)))(images(2)), expected)


@pytest.mark.parametrize(
    ("calibration", "sentence"),
    [
        (None, "expects calibration inputs"),
        ([], "at least one calibration input; got an empty iterable"),
        (torch.empty(0, 3, 20, 20), "at least one calibration input; got an empty iterable"),
        (7, "a tensor or an iterable of arguments; got int"),
        (torch.rand(3, 20, 20), "calibration tensors like the example's"),
        (
            [torch.rand(1, 4, 20, 20)],
            r"or its like as calibration input 0, got \(1, 4, 20, 20\)",
        ),
        (["image"], "as calibration input 0, got str"),
        ([images(1), torch.full((1, 3, 20, 20), math.nan)], "finite numbers in calibration input 1"),
        ([torch.full((1, 3, 20, 20), math.inf)], "finite numbers in calibration input 0"),
    ],
)
def test_calibration_that_does_not_fit_ends_in_a_sentence(model: Small, calibration: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        prunekit.accelerate(model, images(1), precision="int8", calibration=calibration)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precision": "int4"}, "precision 'float32' or 'int8'; got 'int4'"),
        ({"precision": "int8", "calibration_method": "median"}, "calibration_method out of minmax, percentile, mse"),
        ({"precision": "int8", "weight_dtype": torch.bfloat16}, "float32 weights with precision"),
    ],
)
def test_other_choices_end_in_a_sentence(model: Small, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        prunekit.accelerate(model, images(1), calibration=images(1), **options)


def test_a_layer_that_is_too_noisy_stays_float32(model: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(_: object, names: list[str], *more: object) -> dict[str, LayerNoise]:
        return {
            name: LayerNoise(5.0 if name == names[1] else 30.0, torch.zeros(count))
            for name, count in zip(names, (8, 12, 5), strict=True)
        }

    monkeypatch.setattr(int8_module, "noise_of_layers", noisy)
    report = report_of(in_int8(model, images(1), images(4)))
    assert [row.precision for row in report.rows] == ["int8", "float32", "int8"]
    assert any(note.startswith("float32 in second: its signal is less than 20 dB") for note in report.notes)


def test_a_constant_image_calibrates(model: Small) -> None:
    fast = in_int8(model, images(1), torch.zeros(1, 3, 20, 20))
    assert fast(images(2)).isfinite().all()


def test_a_wrong_layer_is_found_before_anything_is_timed(model: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(node: Any, values: Any, graph: Any) -> Tensor:
        y = torch.as_tensor(reference(node, values, graph))
        return y + 0.02 * y.abs().max()

    reference = quantized_conv2d
    monkeypatch.setattr(int8_module, "quantized_conv2d", off_by_one)
    report = report_of(in_int8(model, images(1), images(4)))
    assert all(row.precision == "float32" for row in report.rows)
    assert any("stays float32: layer first in int8 differs from the reference" in note for note in report.notes)


def test_a_model_that_is_no_graph_stays_as_it_is(model: Small) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x if float(x.sum()) > 0 else -x)
            return y

    fast = prunekit.accelerate(Branching(), images(1), precision="int8", calibration=images(2), tuning_cache=None)
    assert "stays float32: int8 is for models that run as one graph" in report_of(fast).notes


def test_a_set_without_an_instruction_for_it_stays_float32(model: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "quad_layout", lambda: native.QuadLayout(2, 0, "none", 0, 254))
    fast = prunekit.accelerate(model, images(1), precision="int8", calibration=images(2), tuning_cache=None)
    report = report_of(fast)
    assert {row.precision for row in report.rows} <= {"float32"}
    assert any("kernels have no instruction for int8" in note for note in report.notes)


def test_a_half_precision_model_calibrates_on_what_it_takes() -> None:
    torch.manual_seed(0)
    model = Small().eval().bfloat16()
    fast = in_int8(model, images(1).bfloat16(), images(4).bfloat16())
    assert fast(images(1).bfloat16()).dtype == torch.bfloat16
    assert any(row.precision == "int8" for row in report_of(fast).rows)


def test_what_int8_shifts_in_the_mean_is_taken_from_the_bias(model: Small) -> None:
    graph = float32_graph(model, [images(1)])
    names = [node.name for node in graph.nodes if node.op == "conv2d"]
    inputs = [(image,) for image in torch.split(images(8, seed=3), 1)]
    ranges = observe(graph, values_to_observe(graph, names), inputs, "minmax")
    noise = noise_of_layers(graph, names, ranges, inputs)
    plain, corrected = (quantized_graph(graph, names, ranges, shifts) for shifts in (
        None, {name: found.shift for name, found in noise.items()}
    ))  # fmt: skip
    head, x = names[-1], [tensors[0] for tensors in inputs]
    expected = torch.cat([model(image) for image in x])
    first = {name: torch.cat([interpret(g, [image])[0] for image in x]) for name, g in
             {"plain": plain, "corrected": corrected}.items()}  # fmt: skip
    shifts = {name: (found - expected).mean((0, 2, 3)).abs().mean() for name, found in first.items()}
    assert noise[head].shift.shape == (5,)
    assert shifts["corrected"] < shifts["plain"]
