"""S2AP: gradients are taken at perturbed scores, which are then where they were; without it nothing is different."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from prunekit.prune import MaskRule, StraightThrough, initial_scores, score_model
from prunekit.training.augment import NO_AUGMENTATION
from prunekit.training.config import ScoreTraining
from prunekit.training.loop import optimize
from prunekit.training.objectives import make_objective
from tests.support.training_problems import ClassifierLosses, labeled_images, small_classifier, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ScoreTraining(epochs=3, batch_size=4, learning_rate=0.1, optimizer="sgd", augmentation=NO_AUGMENTATION)


def _pruning(model: nn.Module) -> StraightThrough:
    return StraightThrough(model, initial_scores(model, score_model(model, "scaled")), MaskRule(60))


def _optimized(radius: float | None, epochs: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return scores, masks and buffers; None for a training that knows nothing of perturbations."""
    model = small_classifier()
    with _pruning(model) as pruning:
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        perturbed = None if radius is None else lambda: pruning.perturbed(radius)
        objective = make_objective("clean", ClassifierLosses())
        config = CONFIG.updated(epochs=epochs)
        optimize(model, parameters, labeled_images(), objective, config, perturbed=perturbed)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return pruning.scores(), pruning.masks(), buffers


def test_a_perturbation_changes_scores_and_no_density() -> None:
    scores, masks, buffers = _optimized(None)
    nowhere, *_, same_buffers = _optimized(0.0)
    moved, other_masks, other_buffers = _optimized(0.1)
    for layer, score in scores.items():
        assert torch.equal(score, nowhere[layer])  # the same gradient, twice
        assert not torch.equal(score, moved[layer])
        assert masks[layer].sum() == other_masks[layer].sum()
    for name, buffer in buffers.items():
        assert torch.equal(buffer, same_buffers[name])
        if name.endswith("num_batches_tracked"):
            assert torch.equal(buffer, other_buffers[name])


def test_scores_move_up_the_loss_by_a_share_of_their_length_and_back() -> None:
    model, data = small_classifier().eval(), labeled_images()
    x, labels = data.images.float() / 255, data.targets
    assert isinstance(labels, Tensor)
    with _pruning(model) as pruning:
        torch.autograd.backward(cross_entropy(model(x), labels))
        before, state, masks = pruning.scores(), snapshot(model), pruning.masks()
        with pruning.perturbed(0.2):
            for layer, score in pruning.scores().items():
                assert_close((score - before[layer]).norm(), 0.2 * before[layer].norm())
            assert any(not torch.equal(mask, masks[layer]) for layer, mask in pruning.masks().items())
        with pytest.raises(ZeroDivisionError), pruning.perturbed(0.2):
            _ = 1 / 0
        for name, value in snapshot(model).items():
            assert torch.equal(value, state[name])
        for layer, mask in pruning.masks().items():
            assert torch.equal(mask, masks[layer])


def test_only_a_perturbation_is_part_of_what_was_done() -> None:
    assert "score_perturbation" not in CONFIG.identity()
    assert CONFIG.updated(score_perturbation=0.05).identity()["score_perturbation"] == 0.05
