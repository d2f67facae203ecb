"""Accelerated models as files: damaged ones, and such as would call what no model calls, are refused."""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import prunekit
from prunekit import documents
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.tuning_cache import TuningCache
from prunekit.errors import InputError
from prunekit.nn.whole_graph import build_whole_graph
from prunekit.ops.named import operator_named
from prunekit.ops.native import native_status

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]
X = torch.randn(2, 3, 9, 7)


def saved(tmp_path: Path) -> tuple[Path, dict[str, Tensor], dict[str, object]]:
    path = tmp_path / "model.safetensors"
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.BatchNorm2d(4)).eval()
    build_whole_graph(model, (X,), 60.0, TuningCache(None), lambda done, total: None).model.save(path)
    content = documents.read(path, "a model")
    return path, content.tensors, content.document


@pytest.mark.parametrize("damage", [
    lambda d: next(iter(d["choices"].values())).update(rows=3),
    lambda d: next(iter(d["choices"].values())).update(tile_vectors="long"),
    lambda d: d["nodes"][1]["attributes"].update(target="aten.no_such_operator.default"),
    lambda d: d["nodes"][1]["attributes"].update(target="tanh"),
    lambda d: d["nodes"][1]["attributes"].update(target="os.system.default"),
    lambda d: d["nodes"][1]["attributes"].update(target="aten.from_file.default"),
    lambda d: d["nodes"][0].update(inputs=["nobody"]),
    lambda d: d.update(output_spec="{"),
    lambda d: d.update(output_spec=json.dumps([1, {"type": "builtins.dict", "context": "[{}]", "children_spec": []}])),
    lambda d: d.pop("nodes"),
])  # fmt: skip
def test_damaged_models_are_refused(damage: Callable[[dict[str, object]], object], tmp_path: Path) -> None:
    path, tensors, document = saved(tmp_path)
    assert prunekit.load(path)(X).shape == (2, 4, 7, 5)
    damage(document)
    documents.write(path, tensors, document)
    with pytest.raises(InputError, match=r"is damaged|cannot run: expected an operator"):
        prunekit.load(path)


def test_a_model_whose_constants_are_too_short_is_refused(tmp_path: Path) -> None:
    path, tensors, document = saved(tmp_path)
    for name in [name for name in tensors if name.startswith("constant/")]:
        shorter = {**tensors, name: tensors[name][:-1].clone()}
        documents.write(path, shorter, document)
        with pytest.raises(InputError, match=r"expected \[4\] as the shape of .*, got \[3\]"):
            prunekit.load(path)


def test_operators_of_files_are_refused_by_name() -> None:
    assert operator_named("aten.relu.default") is torch.ops.aten.relu.default
    for name, found in (
        ("aten.from_file.default", "reads or writes files"),
        ("aten.save.default", "Expected an operator"),
        ("builtins.eval.default", "Expected an operator of aten, prunekit, torchvision"),
        ("aten", "Expected an operator of torch"),
        ("aten.relu_.default", "changes them"),
        ("aten.add.out", "changes them"),
    ):
        with pytest.raises(InputError, match=found):
            operator_named(name)


def _fast() -> AcceleratedModel:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.BatchNorm2d(4)).eval()
    return build_whole_graph(model, (X,), 60.0, TuningCache(None), lambda done, total: None).model


def _torch_saved(model: nn.Module) -> nn.Module:
    data = io.BytesIO()
    torch.save(model, data)
    data.seek(0)
    loaded = torch.load(data, weights_only=False)
    assert isinstance(loaded, nn.Module)
    return loaded


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), _torch_saved]
)
def test_a_copy_computes_the_same_and_keeps_what_was_set_on_it(again: Callable[[nn.Module], nn.Module]) -> None:
    fast = _fast()
    fast.report = "a report"
    fast.__dict__["names"] = ["cat", "dog"]
    whole = nn.Sequential(fast, nn.ReLU())
    copied = again(whole)
    assert torch.equal(whole(X), copied(X))
    inner = copied.get_submodule("0")
    assert isinstance(inner, AcceleratedModel)
    assert (inner.report, inner.__dict__["names"], inner.training) == ("a report", ["cat", "dog"], False)


def test_a_deep_copy_is_a_model_of_its_own() -> None:
    fast = _fast()
    copied = copy.deepcopy(fast)
    fast(X)
    assert fast.segments()
    assert not copied.segments()
    assert copied.graph.weights.keys() == fast.graph.weights.keys()


def test_another_process_runs_a_model_that_it_was_sent() -> None:
    fast = _fast()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(fast(X), pool.apply(_run, (fast, X)))


def _run(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model(x)
    return y


def test_files_of_the_first_version_have_no_digest_and_load(tmp_path: Path) -> None:
    path, tensors, document = saved(tmp_path)
    expected = prunekit.load(path)(X)
    save_file(tensors, path, metadata={"prunekit": json.dumps({**document, "version": 1})})
    assert torch.equal(prunekit.load(path)(X), expected)
    save_file(tensors, path, metadata={"prunekit": json.dumps(document)})
    with pytest.raises(InputError, match="its digest is missing"):
        prunekit.load(path)
