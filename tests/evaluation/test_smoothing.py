"""Certificates are the paper's, hold for a classifier whose radius is known, and follow the seed alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.evaluation.smoothing import ABSTAIN, Certificate, SmoothingConfig, certified_figures, certify
from tests.support.classes_of_images import write_classes
from tests.support.commands import Options, succeed

pytestmark = pytest.mark.usefixtures("one_thread")


class HalfSpace(nn.Module):
    """Class 1 where the first pixel is above 0.5: smoothed, its true radius is the distance to that."""

    def forward(self, x: Tensor) -> Tensor:
        away = x.flatten(1)[:, :1] - 0.5
        return torch.cat([-away, away], dim=1)


def _image(first: float) -> Tensor:
    image = torch.full((3, 2, 2), 0.5)
    image[0, 0, 0] = first
    return image


def test_the_radius_of_a_half_space_is_nearly_its_distance_and_never_more() -> None:
    config = SmoothingConfig(sigma=0.25, n=20_000, batch_size=5_000)
    for place, distance in enumerate((0.1, 0.3)):
        found = certify(HalfSpace(), _image(0.5 + distance), place, config)
        assert found.label == 1
        assert 0.9 * distance < found.radius <= distance
        assert certify(HalfSpace(), _image(0.5 + distance), place, config) == found


def test_unanimous_samples_certify_what_their_number_allows() -> None:
    # By hand: all n of n, so that the bound is alpha^(1/n) = 0.001^(1/100) = 0.9333; its quantile is 1.5007.
    found = certify(HalfSpace(), _image(100.0), 0, SmoothingConfig(sigma=0.5, n=100))
    assert found.radius == pytest.approx(0.5 * 1.5007, abs=1e-3)


def test_it_abstains_on_the_border() -> None:
    assert certify(HalfSpace(), _image(0.5), 0, SmoothingConfig(sigma=0.25, n=200)) == Certificate(ABSTAIN, 0.0)


def test_figures_count_what_is_right() -> None:
    found = {1: Certificate(0, 0.5), 2: Certificate(1, 0.9), 3: Certificate(ABSTAIN, 0.0), 4: Certificate(2, 0.1)}
    assert certified_figures(found, {1: 0, 2: 0, 3: 0, 4: 2}, (0, 0.25, 0.5)) == {
        "certified_accuracy_0": 0.5,
        "certified_accuracy_0.25": 0.25,
        "certified_accuracy_0.5": 0.25,
        "mean_certified_radius": pytest.approx(0.15),
        "abstained": 0.25,
    }


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"n": 0}, {"n0": 0}, {"alpha": 1.0}])
def test_what_makes_no_sense_is_one_sentence(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="Expected sigma above 0, alpha between 0 and 1"):
        SmoothingConfig(**{"sigma": 0.1, **wrong})  # type: ignore[arg-type]


def test_the_command_certifies(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_classes(tmp_path / "data" / part, ("blue", "green"), 3, size=8)
    shared: Options = {"threads": 1, "data": tmp_path / "data", "sigma": 0.05}
    net: Options = {
        "model": "resnet20",
        "width": 0.2,
        "objective": "smoothing",
        "max-steps": 2,
        "out": tmp_path / "net",
    }
    succeed("train", shared | net)
    more: Options = {
        "weights": tmp_path / "net/model.safetensors", "attack": "none", "certify": True, "certify-n": 50,
        "certify-n0": 10, "certify-radii": "0,0.05", "out": tmp_path / "all",
    }  # fmt: skip
    succeed("evaluate", shared | more)
    found = json.loads((tmp_path / "all/evaluation.json").read_text())["certified"]
    assert found["sigma"] == 0.05
    assert found["certified_accuracy_0"] >= found["certified_accuracy_0.05"]
    with (tmp_path / "all/certify/radii.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
