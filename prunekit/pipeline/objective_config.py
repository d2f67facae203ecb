"""The settings of objectives that certify: training on bounds, and by noise."""

from __future__ import annotations

from pydantic import Field, model_validator

from prunekit.attacks import PgdConfig
from prunekit.config import Config
from prunekit.training.objectives import ObjectiveConfig, VerifiedConfig

_DEFAULT = VerifiedConfig()


class NoiseConfig(Config):
    """The noise of randomized smoothing, in training and where it is certified."""

    sigma: float = Field(
        0.1, gt=0, description="standard deviation of randomized smoothing's noise, for pixels in [0, 1]"
    )


class ObjectiveChoices(NoiseConfig):
    """What `smoothing`, `crown-ibp` and `mixtrain` train by."""

    train_eps: float = Field(
        _DEFAULT.eps, gt=0, le=1, description="L-infinity radius in which crown-ibp and mixtrain bound the loss"
    )
    eps_warmup: float = Field(
        _DEFAULT.warmup, ge=0, le=1, description="share of a training on bounds that minimizes the clean loss first"
    )
    eps_ramp: float = Field(
        _DEFAULT.ramp, ge=0, le=1, description="share of it in which the radius then grows to --train-eps"
    )
    kappa: float = Field(_DEFAULT.kappa, ge=0, le=1, description="final weight of crown-ibp's clean loss; 1 at first")
    crown_weight: float = Field(
        _DEFAULT.crown, ge=0, le=1, description="final weight of CROWN's bounds against intervals' in crown-ibp"
    )
    mixtrain_images: int = Field(_DEFAULT.images, ge=1, description="images of a batch that mixtrain bounds")
    mixtrain_alpha: float = Field(_DEFAULT.alpha, ge=0, le=1, description="weight of mixtrain's bounded loss")

    @model_validator(mode="after")
    def _schedule_ends(self) -> ObjectiveChoices:
        if self.eps_warmup + self.eps_ramp > 1:
            raise ValueError(
                f"--eps-ramp: expected at most 1 together with --eps-warmup, got {self.eps_warmup + self.eps_ramp:g}"
            )
        return self

    def knobs(self, attack: PgdConfig) -> ObjectiveConfig:
        """Return what objectives take."""
        verified = VerifiedConfig(
            self.train_eps, self.eps_warmup, self.eps_ramp, self.kappa, self.crown_weight,
            self.mixtrain_images, self.mixtrain_alpha,
        )  # fmt: skip
        return ObjectiveConfig(attack=attack, sigma=self.sigma, verified=verified)
