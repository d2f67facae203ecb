"""Optimized scores: their settings, sharing them among ratios, and that they find what matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from prunekit.detection import CocoDataset
from prunekit.errors import InputError
from prunekit.pipeline import RunConfig, SilentProgress, make_config, read_rows, run
from prunekit.pipeline.checkpoint import Checkpoint, Training, Workspace, open_checkpoint
from prunekit.pipeline.steps import make_training, optimize_scores, prune_one_shot, prune_optimized, score
from prunekit.pipeline.store import WorkStore
from prunekit.prune import MaskRule, StraightThrough, channel_groups, prunable_layers, score_model
from prunekit.training.config import SCORE_OPTIMIZATIONS
from tests.support.pruning_nets import groups_of
from tests.support.training_problems import tiny_task

pytestmark = pytest.mark.usefixtures("one_thread")

GOOD = {"model": "yolov3-tiny", "weights": "w", "data": "d", "out": "o"}


@pytest.mark.parametrize(
    ("choices", "optimizer", "rate"),
    [
        ({}, "sgd", 0.1),
        ({"score_optimizer": "adamw"}, "adamw", 0.003),
        ({"score_optimizer": "adamw", "optimize_learning_rate": 0.02}, "adamw", 0.02),
    ],
)
def test_each_optimizer_has_its_own_rate_unless_one_is_given(
    choices: dict[str, Any], optimizer: str, rate: float
) -> None:
    knobs = make_config(**GOOD, **choices, optimize_epochs=3).optimize
    assert (knobs.optimizer, knobs.learning_rate, knobs.epochs) == (optimizer, rate, 3)
    assert knobs.ema_decay is None  # an average of scores would rank as none of them did


def test_the_commands_perturb_scores(work: tuple[RunConfig, Workspace, Checkpoint, Training]) -> None:
    config, workspace, start, training = work
    knobs = make_config(**GOOD, score_perturbation=0.05).optimize
    assert knobs.score_perturbation == 0.05
    scores, digest = score(workspace, start, "scaled", config, None)
    found = [
        prune_optimized(workspace, start, scores, digest, MaskRule(60), training, config.optimize.updated(**more))[
            0
        ].sha256
        for more in ({}, {"score_perturbation": 0.0}, {"score_perturbation": 0.05})
    ]
    assert found[0] == found[1] != found[2]


def test_an_optimizer_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"--score-optimizer: must be one of sgd, adamw, got 'lion'"):
        make_config(**GOOD, score_optimizer="lion")


@pytest.fixture
def work(shapes_config: RunConfig, tmp_path: Path) -> tuple[RunConfig, Workspace, Checkpoint, Training]:
    """A short optimization, where to do it, what it starts from and learns from."""
    choices = {"objective": "clean", "max_steps": 6, "augment": False, "score_optimizer": "adamw"}
    config = make_config(**{**shapes_config.model_dump(), **choices})
    dataset = CocoDataset.open(config.data, config.image_size)
    start = open_checkpoint(str(config.weights), tiny_task(dataset.num_classes, config.width))
    training = make_training(config.objective, config.train_attack, dataset, "0", SilentProgress())
    return config, Workspace(WorkStore(tmp_path), SilentProgress()), start, training


@pytest.mark.parametrize("structure", ["unstructured", "filter"])
def test_shared_scores_prune_at_their_own_ratio_as_those_that_are_not_shared(
    work: tuple[RunConfig, Workspace, Checkpoint, Training], structure: str
) -> None:
    config, workspace, start, training = work
    groups = channel_groups(start.model, torch.zeros(1, 3, 96, 96))
    rule, knobs = MaskRule(60, structure, groups=groups), config.optimize
    scores, digest = score(workspace, start, "scaled", config, None)
    alone, _ = prune_optimized(workspace, start, scores, digest, rule, training, knobs)
    trained, optimized, sha = optimize_scores(workspace, start, scores, digest, rule, training, knobs)
    assert prune_one_shot(workspace, trained, optimized, sha, rule).sha256 == alone.sha256
    assert trained.masks is None
    for name, conv in prunable_layers(trained.model).items():
        assert torch.equal(conv.weight, prunable_layers(start.model)[name].weight)


def test_a_run_can_share_scores_among_its_ratios(shapes_config: RunConfig, tmp_path: Path) -> None:
    choices = {"objective": "clean", "max_steps": 4, "augment": False, "score_optimizer": "adamw", "attack": "none"}
    choices |= {"pruning": "optimized", "finetune_epochs": 0, "train_data": shapes_config.data, "ratios": (0, 50, 80)}
    masks, churn, stages = {}, {}, {}
    for at in (None, 80):
        out = tmp_path / str(at)
        folder = run(make_config(**{**shapes_config.model_dump(), **choices, "out": out, "share_scores_at": at}))
        stages[at] = sorted(path.name.split("-")[0] for path in (out / "stages").iterdir())
        rows = {float(row["ratio"]): row for row in read_rows(folder.results)}
        churn[at] = {ratio: row["churn"] for ratio, row in rows.items()}
        for ratio in (50, 80):
            file = out / "masks" / f"unstructured-scaled-optimized-ratio_{ratio}.safetensors"
            masks[at, ratio] = torch.cat([mask.flatten() for _, mask in sorted(load_file(file).items())])
    assert stages[None] == ["prune", "prune", "score"]  # nothing of the unpruned model
    assert stages[80] == ["optimize", "prune", "prune", "score"]
    assert not (masks[80, 80] & ~masks[80, 50]).any()
    assert (masks[80, 50] != masks[None, 50]).any()  # of 138,492 weights, 18,000 and more on two processors
    assert torch.equal(masks[80, 80], masks[None, 80])
    assert churn[80][80] == churn[None][80]
    assert 0 < float(churn[80][50]) < 1


def test_in_few_steps_adamw_moves_masks_that_sgd_leaves_alone(
    work: tuple[RunConfig, Workspace, Checkpoint, Training],
) -> None:
    config, workspace, start, training = work
    rule = MaskRule(80)
    scores, digest = score(workspace, start, "scaled", config, None)
    before = rule(scores)
    moved = {}
    for optimizer in SCORE_OPTIMIZATIONS:
        knobs = make_config(**{**config.model_dump(), "score_optimizer": optimizer}).optimize
        pruned, churn = prune_optimized(workspace, start, scores, digest, rule, training, knobs)
        assert pruned.masks is not None
        kept = sum(int(mask.count_nonzero()) for mask in before.values())
        new = sum(int((pruned.masks[name] & ~mask).count_nonzero()) for name, mask in before.items())
        assert churn == pytest.approx(new / kept)
        moved[optimizer] = churn
    assert moved["adamw"] > 10 * moved["sgd"] > 0


def test_optimizing_finds_the_weights_that_matter_where_magnitude_misleads() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(8, 1, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([1.0, 1.1, 1.2, 1.3, 0.5, 0.6, 0.7, 0.8]).view(1, 8, 1, 1))
    x = torch.randn(64, 8, 2, 2)
    x[:, :4] = 0.01 * x[:, :4]  # the large weights read almost nothing
    target = model(x).detach()
    with StraightThrough(model, score_model(model, "scaled"), MaskRule(50)) as pruning:
        assert pruning.churn().total == 0.0
        assert pruning.masks()[""].flatten().tolist() == [True] * 4 + [False] * 4
        optimizer = torch.optim.SGD(pruning.parameters(), lr=0.1, momentum=0.9)
        for _ in range(50):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
        churn = pruning.churn()
        assert pruning.masks()[""].flatten().tolist() == [False] * 4 + [True] * 4
    assert churn.total == 1.0
    assert churn.layers == {"": 1.0}


@pytest.mark.parametrize("arguments", [{"structure": "filter"}, {"structure": "hybrid", "filter_ratio_percent": 50}])
def test_optimizing_finds_the_filters_that_matter_where_magnitude_misleads(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 1, 1, bias=False)
    model = nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU(), last)
    with torch.no_grad():
        first.weight[:3] *= 5
        last.weight.copy_(torch.tensor([0.01, 0.01, 0.01, 1.0, 1.0, 1.0]).view(1, 6, 1, 1))
    x = torch.randn(64, 3, 2, 2)
    target = model(x).detach()
    groups = groups_of(model)
    rule = MaskRule(50, groups=groups, excluded=groups.heads, **arguments)
    with StraightThrough(model, score_model(model, "magnitude"), rule) as pruning:
        assert pruning.masks()["0"].flatten(1).all(dim=1).tolist() == [True] * 3 + [False] * 3
        scores = [parameter for parameter in pruning.parameters() if parameter.dim() == 4]  # the norm holds still
        optimizer = torch.optim.SGD(scores, lr=1.0, momentum=0.9)
        for _ in range(50):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
        assert pruning.masks()["0"].flatten(1).all(dim=1).tolist() == [False] * 3 + [True] * 3
