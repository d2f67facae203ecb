"""What a run proves of its models is what `evaluate` proves of the same weights, and is computed once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from prunekit.evaluation import smoothing
from prunekit.evaluation.smoothing import Certificate, SmoothingConfig
from prunekit.pipeline import RunConfig, make_config, read_rows, run
from prunekit.pipeline import unit as unit_module
from prunekit.report import write_report
from prunekit.task import ModelSpec, task_of
from tests.support.classes_of_images import write_classes
from tests.support.commands import Options, invoke, succeed
from tests.support.own_modules import SMALL_NET, own_modules

pytestmark = pytest.mark.usefixtures("one_thread")

MODULE = "provable_net"

NOISE: Options = {"sigma": 0.2, "certify-n": 50, "certify-n0": 10, "certify-radii": "0,0.1"}


class Stopped(Exception):
    """What ends the process."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with images and a network that can be bounded, from which commands are run."""
    for part in ("train", "test"):
        write_classes(tmp_path / "data" / part, ("blue", "green", "red"), 5, size=8)
    with own_modules(tmp_path, monkeypatch, **{MODULE: SMALL_NET}):
        yield tmp_path


def _options(**more: Any) -> Options:
    return {"model": f"{MODULE}:net", "data": "data", "threads": 1, **more}


def _run_config(**more: Any) -> RunConfig:
    learning = {"train_data": "data", "pretrain_epochs": 6, "finetune_epochs": 1, "train_batch_size": 4}
    given = {"ratios": "0", "latency_runs": 3, "augment": False, "out": "run", **learning, **more}
    return make_config(**{name.replace("-", "_"): value for name, value in _options(**given).items()})


def _evaluated(run_folder: Path, unit: str, **more: Any) -> dict[str, Any]:
    """Evaluate a unit's model by the command for one."""
    weights = json.loads((run_folder / "units" / f"{unit}.json").read_text())["model"]["path"]
    succeed("evaluate", _options(weights=run_folder / weights, out=f"figures_{unit}", attack="none", **more))
    return dict(json.loads(Path(f"figures_{unit}/evaluation.json").read_text()))


def test_a_run_that_trains_on_bounds_verifies_in_their_ball(folder: Path) -> None:
    write_report(run(_run_config(objective="crown-ibp", train_eps=0.1, eps_warmup=0, ratios="0,50")))
    rows = read_rows(Path("run/results.csv"))
    for row, unit in zip(rows, ("ratio_0", "unstructured-scaled-one-shot-ratio_50"), strict=True):
        found = _evaluated(Path("run"), unit, verify=0.1)["verified"]
        assert found == {"eps": float(row["verified_eps"]), "verified_accuracy": float(row["verified_accuracy"])}
        # The attack's ball is smaller than the one that is proven.
        assert float(row["verified_accuracy"]) <= float(row["attacked_accuracy"]) <= float(row["accuracy"])
        assert not any(name.startswith("certified") for name in row)
    assert float(rows[0]["verified_accuracy"]) > 0  # so that something was compared
    assert "<th>verified</th>" in Path("run/report.html").read_text()


def test_a_run_that_trains_on_noise_certifies_each_image_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certify, certified, limits = smoothing.certify, list[int](), [4, 15]
    config = _run_config(objective="smoothing", **NOISE)

    def counted(model: nn.Module, image: Tensor, image_id: int, config: SmoothingConfig) -> Certificate:
        if len(certified) == limits[0]:
            raise Stopped
        certified.append(image_id)
        return certify(model, image, image_id, config)

    monkeypatch.setattr(smoothing, "certify", counted)
    with pytest.raises(Stopped):
        run(config)
    (begun,) = Path("run/stages").glob("certify-*/radii.partial.csv")
    with begun.open("a") as file:
        file.write("4,0,")  # what a process that is killed while it writes leaves
    del limits[0]
    with monkeypatch.context() as timing:
        timing.setattr(unit_module, "accelerate_and_time", _stop)
        with pytest.raises(Stopped):
            run(config)
    write_report(run(config))
    assert certified == [*range(15)]
    monkeypatch.setattr(smoothing, "certify", certify)
    (row,) = read_rows(Path("run/results.csv"))
    found = _evaluated(Path("run"), "ratio_0", certify=True, **NOISE)["certified"]
    assert found.pop("sigma") == float(row["certified_sigma"])
    assert found == {name: float(row[name]) for name in found}
    assert found["certified_accuracy_0"] >= found["certified_accuracy_0.1"] > 0
    assert "<th>certified at 0.1</th>" in Path("run/report.html").read_text()


def _stop(*args: Any) -> None:
    raise Stopped


def test_it_is_for_classifiers_and_can_be_left_out(tmp_path: Path) -> None:
    options = {"weights": tmp_path / "net.weights", "data": tmp_path, "out": tmp_path / "no"}
    Path(options["weights"]).write_bytes(bytes(64))
    detector = make_config(model="yolov3-tiny", objective="smoothing", **options)
    assert not detector.certifies(task_of(ModelSpec("yolov3-tiny")))
    classifier = task_of(ModelSpec("resnet20"))
    assert make_config(model="resnet20", objective="smoothing", **options).certifies(classifier)
    assert not make_config(model="resnet20", objective="smoothing", certify=False, **options).certifies(classifier)
    assert not make_config(model="resnet20", **options).certifies(classifier)
    assert make_config(model="resnet20", objective="mixtrain", train_eps=0.1, **options).verified_eps(classifier) == 0.1
    bounded = make_config(model="yolov3-tiny", objective="crown-ibp", **options)
    assert bounded.verified_eps(task_of(ModelSpec("yolov3-tiny"))) is None  # training says what is wrong
    result = invoke("run", {"model": "yolov3-tiny", "certify": True, **options})
    assert result.exit_code == 2
    assert "--certify: expected a classifier, got yolov3-tiny." in " ".join(result.stderr.split())
