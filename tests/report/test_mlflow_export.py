"""Runs in MLflow: parameters, metrics by ratio, and one sentence where it does not work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prunekit.pipeline import RunFolder
from prunekit.report import send_to_mlflow
from tests.support.written_runs import written_run


class FakeMlflow(ModuleType):
    """Notes what is logged in each run, by the run's name."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.__spec__ = ModuleSpec("mlflow", None)
        self.params: dict[str, dict[str, Any]] = {}
        self.metrics: dict[str, dict[int, dict[str, float]]] = {}

    @contextmanager
    def start_run(self, run_name: str) -> Iterator[None]:
        self._name = run_name
        yield

    def log_params(self, params: dict[str, Any]) -> None:
        self.params[self._name] = params

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.setdefault(self._name, {})[step] = metrics


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    scaled = ("scaled", "one-shot")
    rows = [(r, s, *scaled, 0.4 - r / 200, "", "uniform", "") for s in ("unstructured", "filter") for r in (0, 50)]
    return written_run(tmp_path / "a", 3, 2, *rows)


def _use(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None, uri: str = "http://somewhere") -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setitem(sys.modules, "mlflow", module)


def test_each_way_to_prune_is_a_run_with_ratios_as_steps(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = FakeMlflow()
    _use(monkeypatch, mlflow)
    assert send_to_mlflow([run]) == "Sent to MLflow: 1 of 1 runs; the others were there."
    assert list(mlflow.params) == ["a: unstructured, scaled, one-shot", "a: filter, scaled, one-shot"]
    parameters = mlflow.params["a: filter, scaled, one-shot"]
    assert (parameters["seed"], parameters["finetune.epochs"], parameters["structure"]) == ("3", "4", "filter")
    metrics = mlflow.metrics["a: filter, scaled, one-shot"]
    assert {step: found["ap"] for step, found in metrics.items()} == {0: 0.4, 50: pytest.approx(0.15)}
    assert metrics[50]["latency_ms"] == 4.5
    assert not {"attacked_ap", "processor", "structure"} & {*metrics[50]}


def test_a_run_is_sent_once_and_again_with_new_rows(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, FakeMlflow(), "http://me:secret@somewhere")
    send_to_mlflow([run])
    assert send_to_mlflow([run]) == "Sent to MLflow: 0 of 1 runs; the others were there."
    assert "secret" not in (run.root / "mlflow.json").read_text()
    run.results.write_text(run.results.read_text().replace("0.4", "0.5"))
    assert send_to_mlflow([run]).startswith("Sent to MLflow: 1 of 1")
    _use(monkeypatch, FakeMlflow(), "http://elsewhere")
    assert send_to_mlflow([run]).startswith("Sent to MLflow: 1 of 1")


def test_nothing_is_sent_without_an_address(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, None, "")
    assert send_to_mlflow([run]) == ""


def test_what_goes_wrong_is_one_sentence(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, None)
    assert "pip install 'prunekit[mlflow]'" in send_to_mlflow([run])
    mlflow = FakeMlflow()
    mlflow.log_params = _refuse  # type: ignore[method-assign]
    _use(monkeypatch, mlflow)
    assert send_to_mlflow([run]) == "Not sent to MLflow: No such host"
    assert not (run.root / "mlflow.json").exists()


def _refuse(params: dict[str, Any]) -> None:
    raise ConnectionError("No such host\nand more")


def test_mlflow_itself_takes_a_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install 'prunekit[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert send_to_mlflow([run]).startswith("Sent to MLflow: 1 of 1")
    found = mlflow.search_runs(output_format="list", search_all_experiments=True)
    assert {one.info.run_name for one in found} == {f"a: {s}, scaled, one-shot" for s in ("unstructured", "filter")}
    history = mlflow.MlflowClient().get_metric_history(found[0].info.run_id, "ap")
    assert {point.step: point.value for point in history} == {0: 0.4, 50: pytest.approx(0.15)}
    assert found[0].data.params["finetune.epochs"] == "4"
