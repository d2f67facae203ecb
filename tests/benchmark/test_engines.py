"""Dense engines in every precision: right on nets of all kinds, and named for nothing that they do not do."""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunekit.benchmark.engines import onnx_runtime, open_vino, precisions, pytorch
from prunekit.benchmark.engines.calibration import NUM_INPUTS, calibration_inputs
from prunekit.benchmark.engines.calls import UnavailableError, as_tuple, quiet
from prunekit.benchmark.engines.precisions import Precision, check_bfloat16, check_layers
from prunekit.benchmark.peers import FLOAT32_PEERS, PEERS, Peer
from prunekit.comparison import MAX_RELATIVE_RMS, relative_rms
from prunekit.processor import Processor

# Of these small nets int8 leaves 0.4 to 3 %, bfloat16 up to 1 %: rounding, and far from a wrong layout or scale.
_LOWER_BOUND, _UPPER_BOUND = 1e-5, 0.06


class Heads(nn.Module):
    """Strides, groups, LeakyReLU, a maximum padded by -inf, and two outputs of different rank."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.LeakyReLU(0.1)]
        self.stem = nn.Sequential(*(layer for layer in layers if norm or not isinstance(layer, nn.BatchNorm2d)))
        self.grouped = nn.Conv2d(12, 10, 3, padding=1, groups=2)
        self.head, self.classes = nn.Conv2d(10, 5, 1), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = nn.functional.pad(self.stem(x), (0, 1, 0, 1), value=float("-inf"))
        y = self.grouped(nn.functional.max_pool2d(y, 2, stride=1))
        return self.head(y), self.classes(y.mean((2, 3)))


def heads(norm: bool) -> nn.Module:
    torch.manual_seed(3)
    net = Heads(norm)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
            module.running_mean, module.running_var = torch.randn(12), torch.rand(12) + 0.5
    return net.eval().requires_grad_(False)


def lone_layer() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(3, 7, 3, stride=2, padding=1)).eval().requires_grad_(False)


NETS = {"with BatchNorm": heads(True), "without BatchNorm": heads(False), "a lone layer": lone_layer()}
SHAPES = {"with BatchNorm": (1, 3, 37, 41), "without BatchNorm": (1, 3, 23, 30), "a lone layer": (1, 3, 17, 19)}


@pytest.fixture
def any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch run bfloat16 where it is slow, too: its numbers are the same."""
    monkeypatch.setattr(pytorch, "check_bfloat16", lambda: None)


def skip_what_is_missing(peer: Peer) -> None:
    if peer.missing:
        pytest.skip(f"{peer.name}: {peer.missing}")


@pytest.mark.usefixtures("any_processor")
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("key", PEERS)
def test_outputs_are_those_of_the_model_to_the_precision_of_the_name(
    key: str, net: str, capsys: pytest.CaptureFixture[str]
) -> None:
    peer, model = PEERS[key], NETS[net]
    skip_what_is_missing(peer)
    x = torch.rand(SHAPES[net], generator=torch.Generator().manual_seed(1))
    given, weights = x.clone(), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = as_tuple(model(x))
        try:
            call = peer.build(model, x)
        except UnavailableError as error:
            pytest.skip(f"{peer.name}: {error}")
    with torch.inference_mode():
        outputs = [call() for _ in range(2)][-1]
    assert [(y.shape, y.dtype) for y in outputs] == [(y.shape, y.dtype) for y in expected]
    differences = [relative_rms(*pair) for pair in zip(expected, outputs, strict=True)]
    if peer.precision == "float32":
        assert max(differences) <= MAX_RELATIVE_RMS
    else:
        assert _LOWER_BOUND < max(differences) < _UPPER_BOUND
    assert torch.equal(x, given)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert capsys.readouterr().out == ""  # which is for rows


def test_peers_that_take_part_unasked_compute_in_float32() -> None:
    assert FLOAT32_PEERS == ("eager", "folded", "compile", "onnxruntime", "openvino")
    assert {key: PEERS[key].precision for key in PEERS if key not in FLOAT32_PEERS} == {
        "compile-bf16": "bfloat16",
        "openvino-bf16": "bfloat16",
        "onnxruntime-int8": "int8",
        "openvino-int8": "int8",
    }


@pytest.mark.parametrize("key", ["onnxruntime-int8", "openvino-int8"])
def test_a_missing_quantizer_is_one_sentence(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = PEERS[key].missing
    assert missing == f"{' and '.join(PEERS[key].modules)} not installed (pip install 'prunekit[peers]')"


def test_bfloat16_needs_a_processor_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    enough: tuple[tuple[str, ...], ...] = (("avx2", "avx512f", "avx512_bf16"), ("asimd", "bf16"))
    for flags in enough:
        monkeypatch.setattr(precisions, "processor", lambda flags=flags: Processor("some", flags))
        check_bfloat16()
    lacking: dict[tuple[str, ...], str] = {("avx2", "avx512f", "avx512_vnni"): "has no bfloat16", (): "not known"}
    for flags, why in lacking.items():
        monkeypatch.setattr(precisions, "processor", lambda flags=flags: Processor("some", flags))
        with pytest.raises(UnavailableError, match=why):
            PEERS["compile-bf16"].build(NETS["a lone layer"], torch.rand(1, 3, 17, 19))


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_openvino_is_asked_what_the_processor_can_do(monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    found = ["FP32", "BIN"]
    core = SimpleNamespace(get_property=lambda device, name: found)
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=lambda: core))
    with pytest.raises(UnavailableError, match=rf"would not run {precision} .*, got FP32, BIN$"):
        PEERS[{"bfloat16": "openvino-bf16", "int8": "openvino-int8"}[precision]].build(nn.Identity(), torch.rand(1))
    found += ["BF16", "INT8"]
    open_vino._check_capability(precision)


def compiled(*layers: tuple[str, str]) -> SimpleNamespace:
    """What OpenVINO says of a compiled model's nodes: type of layer, precision."""

    def node(kind: str, precision: str) -> SimpleNamespace:
        facts = {"layerType": kind, "runtimePrecision": precision}
        values = {name: SimpleNamespace(astype=lambda _, text=text: text) for name, text in facts.items()}
        return SimpleNamespace(get_rt_info=lambda: values)

    ops = [node(*layer) for layer in layers]
    return SimpleNamespace(get_runtime_model=lambda: SimpleNamespace(get_ops=lambda: ops))


def test_a_model_that_openvino_compiled_to_float32_has_no_other_name() -> None:
    half = compiled(("Convolution", "u8"), ("FullyConnected", "f32"), ("Pooling", "f32"), ("Input", "f32"))
    open_vino._check_runtime(half, "int8")
    open_vino._check_runtime(compiled(("Convolution", "bf16"), ("Reorder", "f32")), "bfloat16")
    for silent in (compiled(("Convolution", "f32"), ("Const", "i8")), compiled(("Reorder", "bf16"))):
        for precision in ("bfloat16", "int8"):
            with pytest.raises(UnavailableError, match=f"OpenVINO runs 0 of [01] convolutions .* in {precision}"):
                open_vino._check_runtime(silent, precision)


def test_a_graph_that_onnx_runtime_left_in_float32_has_no_other_name(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    skip_what_is_missing(PEERS["onnxruntime"])
    file = tmp_path / "float.onnx"
    onnx.save(onnx_runtime._exported(NETS["with BatchNorm"], torch.rand(1, 3, 37, 41)), file)
    with pytest.raises(UnavailableError, match="ONNX Runtime runs 0 of 4 convolutions and matrix products in int8"):
        onnx_runtime._check_graph(file)


def test_most_layers_count() -> None:
    check_layers("an engine", "int8", 2, 4)
    for lower, total in ((1, 4), (0, 0)):
        with pytest.raises(UnavailableError, match=f"an engine runs {lower} of {total} .*expected at least half"):
            check_layers("an engine", "int8", lower, total)


def test_infinite_padding_is_not_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    """All values are below 0, so padding by 0 in place of -inf changes every maximum at the border."""
    skip_what_is_missing(PEERS["onnxruntime-int8"])

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            nn.init.constant_(self.conv.bias, -3.0)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.pad(self.conv(x), (1, 1, 1, 1), value=float("-inf"))
            return nn.functional.max_pool2d(y, 2, stride=1)

    model, x = Padded().eval().requires_grad_(False), torch.rand(1, 3, 7, 9)
    (right,) = PEERS["onnxruntime-int8"].build(model, x)()
    assert relative_rms(model(x), right) < 0.02
    monkeypatch.setattr(onnx_runtime, "_unquantizable", lambda graph: [])
    (wrong,) = PEERS["onnxruntime-int8"].build(model, x)()
    assert relative_rms(model(x), wrong) > 0.2


@pytest.mark.parametrize(
    ("machine", "flags", "types", "saturates"),
    [
        ("x86_64", ("avx2",), ("QUInt8", "QInt8"), True),
        ("AMD64", ("avx2", "avx_vnni"), ("QUInt8", "QInt8"), False),
        ("x86_64", ("avx512f", "avx512_vnni"), ("QUInt8", "QInt8"), False),
        ("aarch64", ("asimd", "asimddp"), ("QInt8", "QInt8"), False),
    ],
)
def test_types_suit_the_processor(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: tuple[str, ...], types: tuple[str, str], saturates: bool
) -> None:
    skip_what_is_missing(PEERS["onnxruntime-int8"])
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(precisions, "processor", lambda: Processor("some", flags))
    found = onnx_runtime._types()
    assert (found["activation_type"].name, found["weight_type"].name) == types
    assert found["reduce_range"] is saturates


@pytest.mark.parametrize("shape", [(1, 3, 37, 41), (2, 1, 5, 3)])
def test_calibration_inputs_are_seeded_and_distributed_as_the_input(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    inputs = list(calibration_inputs(x))
    assert len(inputs) == NUM_INPUTS
    for first, second in zip(inputs, calibration_inputs(x), strict=True):
        np.testing.assert_array_equal(first, second)
        assert first.flags.c_contiguous
        np.testing.assert_array_equal(np.sort(first.reshape(*shape[:2], -1)), x.flatten(2).sort().values)
    assert len({value.tobytes() for value in inputs}) > 1


def test_foreign_remarks_stay_off_the_terminal_and_ours_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.root.manager.disable

    def remark() -> None:
        with quiet():
            print("a bar")
            logging.getLogger("foreign").warning("a remark")
            raise ValueError("passes")

    with pytest.raises(ValueError, match="passes"):
        remark()
    assert logging.root.manager.disable == before
    print("a row")
    assert capsys.readouterr() == ("a row\n", "")
