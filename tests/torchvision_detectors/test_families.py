from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from prunekit.detection.torchvision_families import FAMILIES
from prunekit.errors import InputError
from prunekit.extras import MissingExtraError
from prunekit.task import ModelSpec, family_of, models, takes_argument, task_of


def test_families_are_known_by_name() -> None:
    assert set(FAMILIES) <= set(models())
    assert not any(takes_argument(name, "width") for name in FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_sentence_names_the_extra_where_torchvision_is_absent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def hiding(module: str, package: str | None = None) -> ModuleSpec | None:
        return None if module == "torchvision" else find(module, package)

    monkeypatch.setattr(importlib.util, "find_spec", hiding)
    message = rf"Expected the packages of the extra 'torchvision' for the model {name} \(pip install"
    with pytest.raises(InputError, match=message):
        task_of(ModelSpec(name, {"num_classes": 2}))
    with pytest.raises(MissingExtraError, match=message):
        family_of(name).build(num_classes=2)


def test_every_family_has_a_network() -> None:
    pytest.importorskip("torchvision", reason="needs torchvision: pip install 'prunekit[torchvision]'")
    from prunekit.detection.torchvision_networks import NETWORKS

    assert tuple(NETWORKS) == FAMILIES


def test_the_family_says_the_usual_size() -> None:
    pytest.importorskip("torchvision", reason="needs torchvision: pip install 'prunekit[torchvision]'")
    sizes = {name: task_of(ModelSpec(name)).image_size for name in FAMILIES}
    assert set(sizes.values()) == {320, 800}
    assert all(size % 32 == 0 for size in sizes.values())


def test_ssd_says_which_images_are_too_small_for_it() -> None:
    pytest.importorskip("torchvision", reason="needs torchvision: pip install 'prunekit[torchvision]'")
    with pytest.raises(InputError, match=r"^--image-size: expected at least 288 for ssd300-vgg16, got 256\.$"):
        task_of(ModelSpec("ssd300-vgg16")).open_data(Path("anywhere"), 256, False, None)
