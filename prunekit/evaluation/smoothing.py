"""Certified radii of the smoothed classifier: the class that a model gives most often to an image in Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, field_validator
from scipy.stats import beta, norm
from torch import Tensor, nn

from prunekit.config import BatchConfig
from prunekit.errors import InputError
from prunekit.evaluation.evaluate import Subject
from prunekit.evaluation.verification import labels_images
from prunekit.training.data import device_of, seeded
from prunekit.training.objective import NoiseConfig

ABSTAIN = -1


@dataclass(frozen=True)
class SmoothingConfig:
    """What CERTIFY is asked (Cohen et al. 2019), with its published numbers of samples.

    Attributes:
        sigma: Standard deviation of the noise, for pixels in [0, 1].
        n0: Samples that choose the class.
        n: Samples that bound its probability.
        alpha: Probability that a certificate is wrong.
        batch_size: Samples a pass.
        seed: Of the noise, with an image's id.
    """

    sigma: float
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and 0 < self.alpha < 1 and min(self.n0, self.n, self.batch_size) >= 1):
            raise InputError(
                "Expected sigma above 0, alpha between 0 and 1, and n0, n and batch_size of at least 1, "
                f"got {self.sigma}, {self.alpha}, {self.n0}, {self.n} and {self.batch_size}."
            )


class CertificationConfig(NoiseConfig, BatchConfig):
    """Whether a classifier is certified by randomized smoothing, and by how many samples of each image."""

    certify: bool | None = Field(
        None,
        description="certify a classifier's images by randomized smoothing with noise of --sigma (default: only in a "
        "run with the objective smoothing)",
    )
    certify_radii: tuple[float, ...] = Field(
        (0, 0.25, 0.5, 0.75, 1), min_length=1, description="L2 radii of certified accuracy, for pixels in [0, 1]"
    )
    certify_n0: int = Field(100, ge=1, description="noisy samples of an image that choose the class")
    certify_n: int = Field(100_000, ge=1, description="noisy samples of an image that bound the class's probability")
    certify_alpha: float = Field(0.001, gt=0, lt=1, description="probability that an image's certificate is wrong")

    @field_validator("certify_radii", mode="before")
    @classmethod
    def _parsed_radii(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("certify_radii")
    @classmethod
    def _no_negative_radii(cls, radii: tuple[float, ...]) -> tuple[float, ...]:
        if min(radii) < 0:
            raise ValueError(f"each radius must be at least 0, got {min(radii):g}")
        return radii

    @property
    def smoothing(self) -> SmoothingConfig:
        """What each image is certified by."""
        return SmoothingConfig(
            self.sigma, self.certify_n0, self.certify_n, self.certify_alpha, self.batch_size, self.seed
        )


@dataclass(frozen=True)
class Certificate:
    """The smoothed classifier's class, or ABSTAIN, and the L2 radius, for pixels in [0, 1], in which it stays."""

    label: int
    radius: float


@torch.no_grad()
def certify(model: nn.Module, image: Tensor, image_id: int, config: SmoothingConfig) -> Certificate:
    """Certify one image [3, H, W]: CERTIFY of Cohen et al. (2019).

    The lower end of Clopper and Pearson's one-sided interval for the class's probability p gives σ · Φ⁻¹(p).
    """
    generator = seeded(config.seed, "certify", image_id, image.device)
    label = int(_counts(model, image, config.n0, config, generator).argmax())
    count = int(_counts(model, image, config.n, config, generator)[label])
    probability = float(beta.ppf(config.alpha, count, config.n - count + 1)) if count else 0.0
    if probability <= 0.5:
        return Certificate(ABSTAIN, 0.0)
    return Certificate(label, config.sigma * float(norm.ppf(probability)))


def certify_all(
    subject: Subject, config: SmoothingConfig, known: Container[int] = ()
) -> Iterator[tuple[int, int, Certificate]]:
    """Yield the id, the right class and the certificate of each image, but for those that are known."""
    data, labels, device = subject.dataset, labels_images(subject.task, "--certify"), device_of(subject.model)
    for index in subject.progress.track(range(len(data)), f"certifying at sigma {config.sigma:g}", len(data)):
        batch = data.collate([data[index]]).to(device)
        image_id, label = batch.image_ids[0], int(labels.labels(batch.targets)[0])
        if image_id not in known:
            yield image_id, label, certify(subject.model, batch.images[0], image_id, config)


def certified_figures(
    certificates: Mapping[int, Certificate], labels: Mapping[int, int], radii: tuple[float, ...]
) -> dict[str, float]:
    """Return certified accuracy at each radius, the mean certified radius and the share of abstentions.

    Certified accuracy is the share of images that are classified correctly with at least this radius; the mean takes a
    wrong class and an abstention for a radius of 0.
    """
    right = [found.radius for key, found in certificates.items() if found.label == labels[key]]
    total = len(certificates)
    figures = {f"certified_accuracy_{radius:g}": sum(r >= radius for r in right) / total for radius in radii}
    abstained = sum(found.label == ABSTAIN for found in certificates.values())
    return figures | {"mean_certified_radius": math.fsum(right) / total, "abstained": abstained / total}


def _counts(model: nn.Module, image: Tensor, n: int, config: SmoothingConfig, generator: torch.Generator) -> Tensor:
    """Return how often each class wins among n noisy copies of an image, int64 [classes]."""
    counts: Tensor | None = None
    for start in range(0, n, config.batch_size):
        size = min(config.batch_size, n - start)
        noise = torch.randn(size, *image.shape, generator=generator, device=image.device)
        logits = model(image + config.sigma * noise)
        found = torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1])
        counts = found if counts is None else counts + found
    assert counts is not None
    return counts
