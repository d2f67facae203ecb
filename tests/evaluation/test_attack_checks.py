"""A sound evaluation passes every check; each way to corrupt one is caught by the check named after it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from prunekit.attacks import AttackLosses, PgdConfig, pgd
from prunekit.detection import Annotation, CocoDataset, DetectionTask, Detector, load_darknet_weights, yolov3_tiny
from prunekit.detection.yolov3 import YOLOv3Tiny
from prunekit.evaluation import sanity_rules as rules
from prunekit.evaluation.evaluate import Perturbation, Spread, Subject
from prunekit.evaluation.sanity_checks import check_evaluation
from prunekit.evaluation.sanity_rules import Check, CheckReport, MeaninglessEvaluationError
from prunekit.pipeline import RunConfig, SilentProgress
from tests.support.attack_problems import Untouched

pytestmark = pytest.mark.usefixtures("one_thread")

# Six steps are enough for a net this small, and quicker than the preset's twenty.
SOUND = PgdConfig(eps=0.05, step_size=0.02, steps=6, random_start=True)
NAMES = [
    "eval mode",
    "gradient",
    "clean AP",
    "moves",
    "ball",
    "pixels",
    "eps 0",
    "monotone",
    "large eps",
    "more steps",
    "noise",
    "white box",
    "state",
]


@pytest.fixture
def dataset(shapes_config: RunConfig) -> CocoDataset:
    return CocoDataset.open(shapes_config.data, shapes_config.image_size)


@pytest.fixture
def model(shapes_config: RunConfig, dataset: CocoDataset) -> Detector:
    model = yolov3_tiny(dataset.num_classes, shapes_config.width).eval()
    load_darknet_weights(model, str(shapes_config.weights))
    return model


@dataclasses.dataclass(frozen=True)
class Corrupted(PgdConfig):
    """An attack to be spoilt by a subclass."""

    def plain(self) -> PgdConfig:
        return PgdConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


class TooFar(Corrupted):
    """Takes eps for 0..255."""

    def __call__(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Tensor:
        return pgd(model, x, losses.total, self.plain().with_eps(min(1.0, self.eps * 255)), generator)


class TooNear(Corrupted):
    """Divides an eps that is already in [0, 1] by 255."""

    def __call__(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Tensor:
        return pgd(model, x, losses.total, self.plain().with_eps(self.eps / 255), generator)


class Still(Corrupted):
    """Forgets to return what it found."""

    def __call__(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Tensor:
        pgd(model, x, losses.total, self.plain(), generator)
        return x


class Unclamped(Corrupted):
    """Leaves [0, 1]."""

    def __call__(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Tensor:
        delta = pgd(model, x, losses.total, self.plain(), generator) - x
        return x + self.eps * delta.sign()


class Training(Corrupted):
    """Lets batch normalization update its statistics."""

    def __call__(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Tensor:
        model.train()
        with torch.no_grad():
            model(x)
        model.eval()
        return pgd(model, x, losses.total, self.plain(), generator)


class Detaching(YOLOv3Tiny):
    """Cuts its input off from the graph."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x.detach())


class Rounding(YOLOv3Tiny):
    """Rounds pixels to bytes, which has no slope."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().forward((x * 255).round() / 255)


class Misleading(YOLOv3Tiny):
    """Gives gradients of the wrong sign."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().forward(2 * x.detach() - x)


def subject(model: Detector, dataset: CocoDataset, config: RunConfig) -> Subject:
    return Subject(model, DetectionTask.of(model), dataset, config, SilentProgress())


def failed(report: CheckReport) -> set[str]:
    return {row.name for row in report.failed}


@pytest.mark.parametrize("attack", [SOUND, PgdConfig(3.0, step_size=1.0, steps=6, norm="l2")])
def test_a_sound_evaluation_passes_and_leaves_the_model_alone(
    model: Detector, dataset: CocoDataset, shapes_config: RunConfig, attack: PgdConfig
) -> None:
    untouched = Untouched(model)
    report = check_evaluation(subject(model, dataset, shapes_config), attack)
    assert [row.name for row in report.rows] == NAMES
    assert failed(report) == set()
    report.require()
    assert untouched.holds()
    assert all(math.isfinite(number) for row in report.rows for number in row.numbers.values())


@pytest.mark.parametrize(
    ("attack", "names"),
    [
        (TooFar, {"ball"}),
        (TooNear, {"moves", "large eps"}),
        (Still, {"moves", "large eps"}),
        (Unclamped, {"pixels"}),
        (Training, {"state"}),
    ],
)
def test_a_corrupted_attack_is_caught(
    model: Detector, dataset: CocoDataset, shapes_config: RunConfig, attack: type[Corrupted], names: set[str]
) -> None:
    corrupted = attack(**dataclasses.asdict(SOUND))
    report = check_evaluation(subject(model, dataset, shapes_config), corrupted, num_images=4)
    assert names <= failed(report)
    for name in names:
        with pytest.raises(MeaninglessEvaluationError, match=f"{name}: "):
            report.require()


def test_an_attack_of_the_wrong_sign_is_weaker_than_anything(
    model: Detector, dataset: CocoDataset, shapes_config: RunConfig
) -> None:
    class DescendingOnOne(Corrupted):
        """Descends on every model but one."""

        def __call__(
            self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
        ) -> Tensor:
            sign = 1 if model is source else -1
            return pgd(model, x, lambda outputs: sign * losses.total(outputs), self.plain(), generator)

    source = yolov3_tiny(dataset.num_classes, shapes_config.width).eval()
    source.load_state_dict(model.state_dict())
    attack = DescendingOnOne(**dataclasses.asdict(SOUND))
    report = check_evaluation(subject(model, dataset, shapes_config), attack, source, num_images=4)
    assert "white box" in failed(report)


def test_training_mode_is_caught_before_it_does_harm(
    model: Detector, dataset: CocoDataset, shapes_config: RunConfig
) -> None:
    model.get_submodule("stage16").train()
    untouched = Untouched(model)
    report = check_evaluation(subject(model, dataset, shapes_config), SOUND)
    assert failed(report) == {"eval mode"}
    assert "stage16.0.norm is in training mode" in report.failed[0].sentence
    assert untouched.holds()


@pytest.mark.parametrize(
    ("masked", "sentence"),
    [
        (Detaching, "does not depend on the image"),
        (Rounding, "for 0% of the images"),
        (Misleading, "for 0% of the images"),
    ],
)
def test_masked_gradients_are_caught(
    model: Detector, dataset: CocoDataset, shapes_config: RunConfig, masked: type[YOLOv3Tiny], sentence: str
) -> None:
    net = masked(dataset.num_classes, shapes_config.width).eval()
    net.load_state_dict(model.state_dict())
    report = check_evaluation(subject(net, dataset, shapes_config), SOUND)
    assert failed(report) == {"gradient"}
    assert sentence in report.failed[0].sentence


def test_a_model_that_finds_nothing_cannot_be_checked(dataset: CocoDataset, shapes_config: RunConfig) -> None:
    torch.manual_seed(0)
    ignorant = yolov3_tiny(dataset.num_classes, shapes_config.width).eval()
    report = check_evaluation(subject(ignorant, dataset, shapes_config), SOUND, num_images=2)
    assert "clean AP" in failed(report)


def test_images_without_objects_are_left_out(dataset: CocoDataset) -> None:
    everything = list(dataset.images)
    empty = dataclasses.replace(everything[0], annotations=[])
    dataset.images = [empty, *everything]
    assert dataset.part(3).images == everything[:3]
    assert len(dataset.images) == len(everything) + 1
    dataset.images = [empty]
    assert dataset.part(3).images == [empty]


def test_one_object_counts_most_where_its_class_has_no_other(dataset: CocoDataset) -> None:
    two, one = (dataclasses.replace(dataset.images[0], annotations=made) for made in ([A, A, B], [A]))
    dataset.images = [two, one]
    assert dataset.resolution() == 1 / 2  # half of AP is the AP of the one B
    dataset.images = [one, one]
    assert dataset.resolution() == 1 / 2
    dataset.images = [two, two]
    assert dataset.resolution() == 1 / 4
    dataset.images = []
    assert math.isnan(dataset.resolution())


SCALE = rules.Scale(clean=0.4, one_object=0.01)
A, B = (Annotation((0.0, 0.0, 9.0, 9.0), label, 81.0, is_crowd=False) for label in (0, 1))


def moved(linf: float, lowest: float = 0.0, highest: float = 1.0) -> Perturbation:
    spread = Spread(linf, linf, linf)
    return Perturbation(spread, spread, lowest, highest)


@pytest.mark.parametrize(
    ("check", "passes"),
    [
        (rules.something_to_attack(SCALE), True),
        (rules.something_to_attack(rules.Scale(0.1, 0.1)), False),
        (rules.something_to_attack(rules.Scale(math.nan, math.nan)), False),
        (rules.no_radius_changes_nothing(SCALE, 0.4), True),
        (rules.no_radius_changes_nothing(SCALE, 0.4000001), False),
        (rules.falls_with_eps(SCALE, {0.0: 0.4, 0.1: 0.2, 0.2: 0.219, 0.3: 0.0}), True),
        (rules.falls_with_eps(SCALE, {0.0: 0.4, 0.1: 0.2, 0.2: 0.221, 0.3: 0.0}), False),
        (rules.nothing_survives(SCALE, 0.25, 0.019), True),
        (rules.nothing_survives(SCALE, 0.25, 0.021), False),
        (rules.has_converged(SCALE, 0.1, 0.061), True),
        (rules.has_converged(SCALE, 0.1, 0.059), False),
        (rules.has_converged(SCALE, 0.1, 0.141), False),
        (rules.chance_is_harmless(SCALE, 0.281), True),
        (rules.chance_is_harmless(SCALE, 0.279), False),
        (rules.own_gradients_win(SCALE, 0.12, 0.101), True),
        (rules.own_gradients_win(SCALE, 0.12, 0.099), False),
        (rules.own_gradients_win(rules.Scale(0.4, 0.07), 0.1, 0.04), True),  # less than one object
        (rules.every_image_moves("linf", 0.1, moved(0.051)), True),
        (rules.every_image_moves("linf", 0.1, moved(0.049)), False),
        (rules.none_leaves_the_ball("l2", {0.0: moved(0.0), 0.1: moved(0.1)}), True),
        (rules.none_leaves_the_ball("l2", {0.0: moved(0.001), 0.1: moved(0.1)}), False),
        (rules.none_leaves_the_ball("linf", {0.0: moved(0.0), 0.1: moved(0.1001)}), False),
        (rules.pixels_stay_pixels({0.1: moved(0.1)}), True),
        (rules.pixels_stay_pixels({0.1: moved(0.1), 0.2: moved(0.2, lowest=-1e-3)}), False),
        (rules.pixels_stay_pixels({0.1: moved(0.1, highest=1.001)}), False),
    ],
)
def test_each_rule_has_its_limit(check: Check, passes: bool) -> None:
    assert check.passed is passes, check.sentence
