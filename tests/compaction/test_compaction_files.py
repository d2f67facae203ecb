"""Compacted models as files, in other runtimes, on the engine, and with their optimizers."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunekit
from prunekit import documents
from prunekit.compaction import Certificate, CompactionResult, carry_optimizer, compact, export
from prunekit.comparison import relative_rms
from prunekit.detection import Detector, yolov3_tiny
from prunekit.errors import InputError
from prunekit.nn import MAX_RELATIVE_RMS
from tests.support.compaction_nets import masked, random_case, randomize


def half_of(net: nn.Module) -> nn.Module:
    """Zero every other filter but those of heads."""
    masks = {
        name: torch.arange(len(conv.weight)) % 2 == 0
        for name, conv in net.named_modules()
        if isinstance(conv, nn.Conv2d) and "head" not in name
    }
    return masked(net, masks)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    net = yolov3_tiny(3, width=0.1).eval()
    randomize(net)
    half_of(net)
    return net


@pytest.fixture(scope="module")
def small_detector(detector: Detector) -> CompactionResult:
    return compact(detector, torch.rand(1, 3, 64, 64), multiple_of=1, latency_runs=0)


class Classifier(nn.Module):
    """A net that prunekit does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"logits": self.head(features.mean(dim=(2, 3))), "features": features}


@pytest.fixture(scope="module")
def small_classifier() -> CompactionResult:
    torch.manual_seed(0)
    net = Classifier().eval()
    randomize(net)
    return compact(half_of(net), torch.rand(1, 3, 16, 16), multiple_of=1, latency_runs=0)


@torch.no_grad()
def test_a_detector_comes_back_as_its_class(small_detector: CompactionResult, tmp_path: Path) -> None:
    prunekit.save(small_detector, tmp_path / "small.prunekit")
    loaded = prunekit.load(tmp_path / "small.prunekit")
    assert type(loaded) is type(small_detector.model)
    assert isinstance(loaded, Detector)
    for size in (64, 96):
        x = torch.rand(2, 3, size, size)
        for a, b in zip(small_detector.model(x), loaded(x), strict=True):
            assert torch.equal(a, b)
    assert loaded.certificate == small_detector.certificate
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@torch.no_grad()
def test_a_detector_that_someone_changed_comes_back_as_a_program(detector: Detector, tmp_path: Path) -> None:
    changed = copy.deepcopy(detector)
    changed.set_submodule("stage16.0.activation", nn.SiLU())
    result = compact(changed, torch.rand(1, 3, 64, 64), multiple_of=1, latency_runs=0)
    prunekit.save(result, tmp_path / "small.prunekit")
    loaded = prunekit.load(tmp_path / "small.prunekit")
    assert not isinstance(loaded, Detector)
    x = torch.rand(1, 3, 96, 64)
    for a, b in zip(result.model(x), loaded(x), strict=True):
        assert relative_rms(a, b) <= MAX_RELATIVE_RMS


@torch.no_grad()
def test_any_other_model_comes_back_as_a_program_for_any_size(
    small_classifier: CompactionResult, tmp_path: Path
) -> None:
    path = tmp_path / "small.prunekit"
    prunekit.save(small_classifier, path)
    loaded = prunekit.load(path)
    for shape in ((1, 3, 16, 16), (3, 3, 21, 18)):
        x = torch.rand(shape)
        expected, actual = small_classifier.model(x), loaded(x)
        assert expected.keys() == actual.keys()
        for name in expected:
            assert relative_rms(expected[name], actual[name]) <= MAX_RELATIVE_RMS
    with pytest.raises(InputError, match=r"\[1, 3, 16, 16\] \(any number"):
        loaded(torch.rand(1, 4, 16, 16))
    assert path.read_bytes().find(b"pickle") == -1


def test_a_program_loads_in_a_process_that_never_saw_the_model(
    small_classifier: CompactionResult, tmp_path: Path
) -> None:
    x = torch.rand(1, 3, 16, 16)
    prunekit.save(small_classifier, tmp_path / "small.prunekit")
    code = (
        "import sys, torch, prunekit; model = prunekit.load(sys.argv[1]);"
        "print(model(torch.ones(1, 3, 16, 16))['logits'].flatten().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "small.prunekit")], capture_output=True, text=True, check=True
    )
    with torch.no_grad():
        expected = small_classifier.model(torch.ones_like(x))["logits"].flatten()
    assert torch.allclose(torch.tensor(eval(done.stdout)), expected, rtol=1e-5)


def test_damaged_and_foreign_files_are_refused(small_detector: CompactionResult, tmp_path: Path) -> None:
    path = tmp_path / "small.prunekit"
    with pytest.raises(InputError, match="no file"):
        prunekit.load(path)
    path.write_bytes(b"none of ours")
    with pytest.raises(InputError, match="cannot be read"):
        prunekit.load(path)
    prunekit.save(small_detector, path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"num_classes", b"num_classed"))
    with pytest.raises(InputError, match="damaged"):
        prunekit.load(path)


def test_a_file_that_calls_something_else_is_refused(small_classifier: CompactionResult, tmp_path: Path) -> None:
    path = tmp_path / "small.prunekit"
    prunekit.save(small_classifier, path)
    content = documents.read(path, "a model")
    text = json.dumps(content.document).replace("aten.silu.default", "os.system.default")
    documents.write(path, content.tensors, json.loads(text))
    with pytest.raises(
        InputError,
        match=r"cannot run: Expected an operator of aten, prunekit, torchvision, got .os\.system\.default.",
    ):
        prunekit.load(path)


@pytest.mark.parametrize("damage", ["dimension", "size as text"])
def test_what_kernels_without_memory_do_not_check_is_found_at_load(damage: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Softmax(1)).eval()
    path = tmp_path / "small.prunekit"
    prunekit.save(compact(net, torch.rand(1, 3, 16, 16), latency_runs=0), path)
    content = documents.read(path, "a model")
    document = copy.deepcopy(dict(content.document))
    program = document["program"]
    if damage == "dimension":  # softmax on meta tensors takes any
        (softmax,) = (node for node in program["nodes"] if node.get("target") == "aten.softmax.int")
        softmax["args"][1] = -101
    else:
        program["shapes"][0][1] = "3"
    documents.write(path, content.tensors, document)
    with pytest.raises(InputError, match="damaged"):
        prunekit.load(path)


def test_a_certificate_survives_json(small_detector: CompactionResult) -> None:
    certificate = small_detector.certificate
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert "channels removed" in str(certificate)


@torch.no_grad()
@pytest.mark.parametrize("net", ["small_detector", "small_classifier"])
def test_onnx_runtime_answers_the_same(net: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result: CompactionResult = request.getfixturevalue(net)
    export(result.model, result.example, "onnx", tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    for size in (result.example[0].shape[2], 96):
        x = torch.rand(2, 3, size, size)
        outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = result.model(x)
        expected = list(expected.values()) if isinstance(expected, dict) else list(expected)
        for a, b in zip(expected, outputs, strict=True):
            assert relative_rms(a, torch.from_numpy(b)) <= 1e-5


@torch.no_grad()
def test_torch_s_own_program_answers_the_same(small_classifier: CompactionResult, tmp_path: Path) -> None:
    export(small_classifier.model, small_classifier.example, "torch", tmp_path / "small.pt2")
    program = torch.export.load(tmp_path / "small.pt2").module()
    x = torch.rand(2, 3, 24, 16)
    assert torch.allclose(program(x)["logits"], small_classifier.model(x)["logits"], atol=1e-6)
    with pytest.raises(InputError, match="onnx, torch to export to, got 'tflite'"):
        export(small_classifier.model, small_classifier.example, "tflite", tmp_path / "small")


@torch.no_grad()
def test_a_compacted_model_accelerates(small_detector: CompactionResult) -> None:
    x = torch.rand(1, 3, 64, 64)
    weight = small_detector.model.get_submodule("stage16.6.conv").weight
    assert isinstance(weight, Tensor)
    fast = prunekit.accelerate(small_detector.model, x, tuning_seconds=1.0, tuning_cache=None)
    for a, b in zip(small_detector.model(x), fast(x), strict=True):
        assert relative_rms(a, b) <= MAX_RELATIVE_RMS


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=1e-2),
    ],
    ids=["sgd", "adamw"],
)
def test_training_goes_on_as_if_nothing_had_been_cut(make: Callable[..., torch.optim.Optimizer]) -> None:
    """Masked filters that are silent get no gradient: both nets take the same steps, with the state carried."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).double()
    with torch.no_grad():
        net[0].weight[[1, 4, 5]] = 0.0
        net[0].bias[[1, 4, 5]] = -1.0
        net[2].weight[:, [1, 4, 5]] = 0.0
    optimizer = make(net.parameters())
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    for _ in range(3):
        step(net, optimizer)
    with torch.no_grad():
        net[0].weight[[1, 4, 5]] = 0.0
    result = compact(net.eval(), x, multiple_of=1, latency_runs=0)
    assert len(result.model.get_submodule("0").weight) == 5  # type: ignore[arg-type]
    carried = carry_optimizer(optimizer, net, result)
    assert type(carried) is type(optimizer)
    for _ in range(3):
        step(net, optimizer)
        step(result.model, carried)
    with torch.no_grad():
        assert torch.allclose(net(x), result.model(x), rtol=1e-9, atol=1e-12)


def test_an_optimizer_of_other_parameters_is_refused(small_classifier: CompactionResult) -> None:
    other = torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(InputError, match="holds a tensor of shape"):
        carry_optimizer(other, small_classifier.model, small_classifier)


@torch.no_grad()
def test_random_nets_come_back_from_their_files(tmp_path: Path) -> None:
    for seed in range(3):
        case = random_case(random.Random(seed))
        result = compact(case.net, case.example, case.masks, multiple_of=1, latency_runs=0)
        prunekit.save(result, tmp_path / "net.prunekit")
        loaded = prunekit.load(tmp_path / "net.prunekit")
        for a, b in zip(result.model(case.example), loaded(case.example), strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
