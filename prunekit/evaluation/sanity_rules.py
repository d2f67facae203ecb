"""What the figures of a sound evaluation under attack must be like: one function a rule, numbers in, verdict out.

Athalye et al. (2018, "Obfuscated gradients give a false sense of security") and Carlini et al. (2019, "On evaluating
adversarial robustness") list the signs of a broken one: an attack that gains nothing from more strength, that chance
or a transferred perturbation beats, or that cannot win where the ball holds everything. Their accuracy is the task's
main figure here: AP for detectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from prunekit.evaluation.evaluate import Perturbation, Spread

# In shares of the clean figure; never less than one object can change.
MONOTONE_TOLERANCE = 0.05
STEPS_TOLERANCE = 0.1
TRANSFER_TOLERANCE = 0.05
NOISE_TOLERANCE = 0.3
LARGE_EPS_REMAINDER = 0.05

MIN_MOVE = 0.5  # of eps, by every image
ROUNDING = 1e-5  # by which float32 may leave the ball: absolute, and as a share of eps


@dataclass(frozen=True)
class Check:
    """One check: its name, whether all is as it must be, what was seen in a sentence, and the numbers."""

    name: str
    passed: bool
    sentence: str
    numbers: Mapping[str, float]


class MeaninglessEvaluationError(RuntimeError):
    """A check failed: figures of this evaluation under attack would mean nothing."""


@dataclass(frozen=True)
class CheckReport:
    """All checks that were made, in order."""

    rows: list[Check]

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [row for row in self.rows if not row.passed]

    def require(self) -> None:
        """Raise MeaninglessEvaluationError with the sentences of the checks that failed, if any did."""
        if self.failed:
            sentences = "; ".join(f"{row.name}: {row.sentence}" for row in self.failed)
            raise MeaninglessEvaluationError(
                f"{len(self.failed)} of {len(self.rows)} checks of the evaluation under attack failed: {sentences}"
            )


@dataclass(frozen=True)
class Scale:
    """What differences of a figure are measured by.

    Attributes:
        clean: its clean value.
        one_object: how much of it one object can make at most: smaller differences are chance.
        name: the figure's.
    """

    clean: float
    one_object: float
    name: str = "AP"

    def tolerance(self, share: float) -> float:
        """Return the difference that is allowed, for a share of the clean value."""
        return max(share * self.clean, self.one_object)


def something_to_attack(scale: Scale) -> Check:
    """The clean model must find more than chance can."""
    sentence = (
        f"the clean {scale.name} is {scale.clean:.3f}: it must exceed what one object can make, {scale.one_object:.3f}"
    )
    return Check(f"clean {scale.name}", scale.clean > scale.one_object, sentence, {"ap": scale.clean})


def no_radius_changes_nothing(scale: Scale, at_zero: float) -> Check:
    """An attack with eps 0 must give the clean figure, bit for bit."""
    sentence = (
        f"an attack with eps 0 gives {scale.name} {at_zero:.4f}, no attack {scale.clean:.4f}: the two must be equal"
    )
    return Check("eps 0", at_zero == scale.clean, sentence, {"ap": at_zero, "clean": scale.clean})


def falls_with_eps(scale: Scale, by_eps: Mapping[float, float]) -> Check:
    """The figure must not rise with eps; `by_eps` ascends in eps."""
    largest_rise = max(after - before for before, after in pairwise(by_eps.values()))
    allowed = scale.tolerance(MONOTONE_TOLERANCE)
    curve = ", ".join(f"{ap:.3f} at {eps:.3g}" for eps, ap in by_eps.items())
    sentence = f"{scale.name} is {curve}: it may rise by at most {allowed:.3f} from one eps to the next"
    return Check("monotone", largest_rise <= allowed, sentence, {f"eps {eps:.4g}": ap for eps, ap in by_eps.items()})


def nothing_survives(scale: Scale, eps: float, ap: float) -> Check:
    """In a ball this large the attacker can paint over everything."""
    allowed = scale.tolerance(LARGE_EPS_REMAINDER)
    sentence = f"eps {eps:.3g} leaves {scale.name} {ap:.3f} of {scale.clean:.3f}: at most {allowed:.3f} can be honest"
    return Check("large eps", ap <= allowed, sentence, {"eps": eps, "ap": ap})


def has_converged(scale: Scale, own: float, more_steps: float) -> Check:
    """Many more steps must change little."""
    allowed = scale.tolerance(STEPS_TOLERANCE)
    sentence = (
        f"five times the steps give {scale.name} {more_steps:.3f} instead of {own:.3f}: "
        f"at most {allowed:.3f} may lie between"
    )
    return Check("more steps", abs(more_steps - own) <= allowed, sentence, {"own": own, "more_steps": more_steps})


def chance_is_harmless(scale: Scale, noise: float) -> Check:
    """Random noise of the same eps must leave most of the figure: otherwise it is not the attack that is measured."""
    allowed = scale.tolerance(NOISE_TOLERANCE)
    sentence = f"random noise leaves {scale.name} {noise:.3f} of {scale.clean:.3f}: it may cost at most {allowed:.3f}"
    return Check("noise", scale.clean - noise <= allowed, sentence, {"noise": noise, "clean": scale.clean})


def own_gradients_win(scale: Scale, own: float, transfer: float) -> Check:
    """An attack made on another model must not be the stronger one."""
    allowed = scale.tolerance(TRANSFER_TOLERANCE)
    sentence = (
        f"the model's own gradients lower {scale.name} to {own:.3f}, another model's to {transfer:.3f}: "
        f"one's own may be weaker by at most {allowed:.3f}"
    )
    return Check("white box", own - transfer <= allowed, sentence, {"own": own, "transfer": transfer})


def every_image_moves(norm: str, eps: float, perturbation: Perturbation) -> Check:
    """An attack uses its ball: sign steps reach its surface in some pixel at once."""
    spread = _distances(norm, perturbation)
    sentence = f"the image that moved least moved by {spread.smallest:.3g} of eps {eps:.3g}: at least half is usual"
    return Check("moves", spread.smallest >= MIN_MOVE * eps, sentence, {"smallest": spread.smallest, "eps": eps})


def none_leaves_the_ball(norm: str, perturbations: Mapping[float, Perturbation]) -> Check:
    """No image may move further than eps; `perturbations` by eps."""
    largest = {eps: _distances(norm, seen).largest for eps, seen in perturbations.items()}
    outside = [eps for eps, distance in largest.items() if distance > eps * (1 + ROUNDING) + ROUNDING]
    eps = outside[0] if outside else max(largest)
    sentence = f"where eps is {eps:.4g}, the image that moved most moved by {largest[eps]:.4g}"
    return Check("ball", not outside, sentence, {"largest": largest[eps], "eps": eps})


def pixels_stay_pixels(perturbations: Mapping[float, Perturbation]) -> Check:
    """Attacked pixels must stay in [0, 1]; `perturbations` by eps."""
    lowest = min(seen.lowest for seen in perturbations.values())
    highest = max(seen.highest for seen in perturbations.values())
    sentence = f"attacked pixels lie in [{lowest:.3g}, {highest:.3g}]"
    return Check("pixels", lowest >= 0 and highest <= 1, sentence, {"lowest": lowest, "highest": highest})


def _distances(norm: str, perturbation: Perturbation) -> Spread:
    return perturbation.linf if norm == "linf" else perturbation.l2
