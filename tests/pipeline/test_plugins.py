"""Models, tasks, attacks and scores of one's own go through every command, from one file each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from prunekit import cli
from prunekit.attacks import PRESETS, attack_named, register_attack, uniform_noise
from prunekit.errors import InputError
from prunekit.evaluation.evaluate import CLEAN
from prunekit.evaluation.patch import PATCH
from prunekit.pipeline import read_rows
from prunekit.prune import Score, register_score
from prunekit.task import ModelSpec, load_plugin, register_model, register_task, task_of
from tests.support.commands import Options, invoke, succeed

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSIFIER, DETECTOR = "tests.plugins.toy_classifier", "tests.plugins.toy_detector"
SHARED: Options = {"threads": 1, "image-size": 32}
BRIEF = {"objective": "clean", "max-steps": 3, "train-batch-size": 4}


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six noisy images each of a red and a blue class."""
    folder, random = tmp_path_factory.mktemp("colors"), np.random.default_rng(0)
    for name, channel in (("blue", 2), ("red", 0)):
        (folder / name).mkdir()
        for index in range(6):
            pixels = random.integers(60, 110, (20, 20, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def all_steps(plugin: str, model: str, data: Path, out: Path, attack: str, scores: str, **more: Any) -> dict[str, Any]:
    """Give every command once, each with what the one before wrote; return the evaluation's content."""
    shared = {**SHARED, "plugin": plugin, **more}
    succeed("train", shared | BRIEF | {"model": model, "data": data, "max-steps": 30, "out": out / "trained"})
    weights = {"weights": out / "trained/model.safetensors"}
    succeed("score", shared | weights | {"data": data, "scores": scores, "score-images": 4, "out": out / "scored"})
    made = {"scores-file": out / "scored/scores.safetensors", "ratio": 50, "structure": "filter"}
    succeed("prune", shared | weights | made | {"out": out / "pruned"})
    pruned = {"weights": out / "pruned/model.safetensors", "data": data}
    succeed("finetune", shared | BRIEF | pruned | {"out": out / "tuned"})
    tuned = {"weights": out / "tuned/model.safetensors", "data": data, "transfer-from": weights["weights"]}
    measured = {"attack": attack, "latency": True, "latency-runs": 3}
    succeed("evaluate", shared | tuned | measured | {"out": out / "figures"})
    evaluation: dict[str, Any] = json.loads((out / "figures/evaluation.json").read_text())
    return evaluation


def whole_run(plugin: str, model: str, data: Path, weights: Path, out: Path, **more: Any) -> list[dict[str, str]]:
    """Do the main job on a trained model, and again; return the table's rows."""
    options = SHARED | BRIEF | {"plugin": plugin, "model": model, "weights": weights, "out": out, **more}
    options |= {"data": data, "train-data": data, "ratios": "0,50", "latency-runs": 3, "finetune-epochs": 1}
    succeed("run", options)
    assert "finished earlier" in invoke("run", options).stderr
    return read_rows(out / "results.csv")


def test_a_classifier_goes_through_every_command(colors: Path, tmp_path: Path) -> None:
    found = all_steps(CLASSIFIER, "toy-classifier", colors, tmp_path, "toy-noise,paper", "toy-gradient")
    assert found["model"] == "toy-classifier"
    assert found["num_classes"] == 2
    assert list(found["cases"]) == ["none", "toy-noise", "toy-noise_transfer", "paper", "paper_transfer"]
    assert 0 <= found["cases"]["paper"]["accuracy"] <= 1
    assert {"argmax_ms", "latency_ms", "latency_ms_compacted"} <= found["latency"].keys()
    assert not (tmp_path / "trained/model.weights").exists()
    small = ["compact", str(tmp_path / "tuned"), "--plugin", CLASSIFIER, "--out", str(tmp_path / "small.prunekit")]
    result = CliRunner().invoke(cli.app, [*small, "--image-size", "32", "--multiple-of", "1", "--threads", "1"])
    assert result.exit_code == 0, result.stderr


def test_a_classifiers_run_has_columns_of_its_own(colors: Path, tmp_path: Path) -> None:
    train = {"plugin": CLASSIFIER, "model": "toy-classifier", "data": colors, "max-steps": 40}
    succeed("train", SHARED | BRIEF | train | {"out": tmp_path / "trained"})
    weights = tmp_path / "trained/model.safetensors"
    more = {"structure": "unstructured,filter", "scores": "toy-gradient", "attack": "toy-noise", "transfer": True}
    rows = whole_run(CLASSIFIER, "toy-classifier", colors, weights, tmp_path / "run", **more)
    assert list(rows[0])[:8] == [
        "ratio", "structure", "scores", "pruning", "accuracy", "attacked_accuracy", "transfer_accuracy",
        "attack_success_rate",
    ]  # fmt: skip
    assert "ap" not in rows[0]
    assert float(rows[0]["accuracy"]) > 0.9
    assert float(rows[1]["argmax_ms"]) >= 0
    page = (tmp_path / "run/report.html").read_text()
    assert "share of images whose likeliest class is the right one" in page
    assert "accuracy" in page
    assert "AP50" not in page


def test_a_detector_of_ones_own_goes_through_every_command(shapes_data: Path, tmp_path: Path) -> None:
    few = {"image-size": 64, "limit": 3}
    found = all_steps(DETECTOR, "toy-detector", shapes_data, tmp_path, "fgsm", "deeplift", **few)
    assert {"ap", "ap50", "false_positives_per_image"} <= found["cases"]["fgsm"].keys()
    assert {"decode_ms", "nms_ms"} <= found["latency"].keys()
    weights = tmp_path / "trained/model.safetensors"
    rows = whole_run(DETECTOR, "toy-detector", shapes_data, weights, tmp_path / "run", **few)
    assert [float(row["ratio"]) for row in rows] == [0, 50]
    assert {"ap", "attacked_ap50", "nms_ms_p99"} <= rows[0].keys()


def test_a_factory_is_named_by_its_module_and_only_a_plugins_is_called(shapes_data: Path, tmp_path: Path) -> None:
    options = SHARED | BRIEF | {"image-size": 64, "data": shapes_data, "out": tmp_path / "net"}
    succeed("train", options | {"plugin": DETECTOR, "model": f"{DETECTOR}:wide"})
    succeed(
        "score", SHARED | {"plugin": DETECTOR, "weights": tmp_path / "net/model.safetensors", "out": tmp_path / "s"}
    )
    for name, words in (
        (f"{DETECTOR}:ANCHORS", "a factory of models"),
        (f"{DETECTOR}:nothing", "a factory of models"),
    ):
        result = invoke("train", options | {"plugin": DETECTOR, "model": name, "out": tmp_path / "no"})
        assert result.exit_code == 2
        assert words in result.stderr
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("plugin", "option", "value", "words"),
    [
        ("plugins.none_such", "model", "toy-classifier", "--plugin: expected a module to import"),
        (CLASSIFIER, "model", "resnet", "--model: must be one of yolov3, "),
        (CLASSIFIER, "attack", "noise", "--attack: must be one of fgsm, "),
        (CLASSIFIER, "scores", "mine", "--scores: must be one of scaled, "),
        (CLASSIFIER, "weights", "darknet.weights", "expected a .safetensors file"),
    ],
)
def test_what_no_plugin_registered_is_refused(
    plugin: str, option: str, value: str, words: str, colors: Path, tmp_path: Path
) -> None:
    (tmp_path / "darknet.weights").write_bytes(bytes(400))
    options = SHARED | {"plugin": plugin, "model": "toy-classifier", "weights": tmp_path / "darknet.weights"}
    options |= {"data": colors, "out": tmp_path / "run", option: tmp_path / value if option == "weights" else value}
    result = invoke("run", options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "run").exists()


def test_names_are_taken_once() -> None:
    load_plugin(CLASSIFIER)
    calls: tuple[Callable[[], None], ...] = (
        lambda: register_model("yolov3", nn.Identity, "detection"),
        lambda: register_task("detection", task_of),
        lambda: register_attack("paper", uniform_noise(0.1)),
        lambda: register_score("toy-gradient", Score("again")),
    )
    for taken in calls:
        with pytest.raises(InputError, match="which is registered already"):
            taken()
    for name in ("", " a", "a,b", "a:b"):
        with pytest.raises(InputError, match="without commas, colons and outer spaces"):
            register_attack(name, uniform_noise(0.1))
    for name, meaning in {CLEAN: "clean images", PATCH: "a patch"}.items():
        with pytest.raises(InputError, match=f"new name for the attack, got '{name}', which stands for {meaning}"):
            register_attack(name, uniform_noise(0.1))
        assert name not in PRESETS
    with pytest.raises(InputError, match=f"one of {', '.join(PRESETS)}, got 'brute'"):
        attack_named("brute")
    with pytest.raises(InputError, match=r"the task to be one of detection, .*, got 'sorting'"):
        register_model("sorter", nn.Identity, "sorting")
    with pytest.raises(InputError, match="the model to be one of yolov3, "):
        task_of(ModelSpec("sorter"))
    with pytest.raises(InputError, match="arguments that toy-classifier can be built from: "):
        ModelSpec("toy-classifier", {"depth": 3}).build()
