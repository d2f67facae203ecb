"""How far two answers are apart: zero for equal ones, positive elsewhere, and the documented sum for detectors."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from prunekit.detection import DetectionTask
from prunekit.detection.boxes import split_anchors
from tests.support.training_problems import rectangles, small_detector


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_divergence_of_answers_is_zero_for_equal_ones_and_positive_elsewhere() -> None:
    model = small_detector()
    task = DetectionTask.of(model)
    x = rectangles(3).images.float() / 255
    with torch.no_grad():
        clean = model(x)
        assert torch.equal(task.divergence(clean, clean), torch.zeros(3))
        for head in range(2):
            for channel in range(7):
                changed = [logits.clone() for logits in clean]
                split_anchors(changed[head], 3, 2)[1, 2, 0, 1, channel] += 0.5  # the second image alone
                divergence = task.divergence(changed, clean)
                assert (divergence > 0).tolist() == [False, True, False], (head, channel)


@pytest.mark.parametrize("objectness_shift", [0.0, -9.0])
def test_the_detectors_divergence_is_the_documented_sum(objectness_shift: float) -> None:
    model = small_detector()
    generator = _generator(5)
    shapes = [(2, 21, 2, 2), (2, 21, 4, 4)]
    clean = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for logits in clean:
        logits[:, 4::7] += objectness_shift
    attacked = [logits + 0.3 * torch.randn(logits.shape, generator=generator, dtype=torch.float64) for logits in clean]

    def bernoulli(p: float, q: float) -> float:
        probabilities = torch.tensor([[p, 1 - p], [q, 1 - q]], dtype=torch.float64)
        return float((probabilities[0] * (probabilities[0] / probabilities[1]).log()).sum())

    expected = []
    for image in range(2):
        total = 0.0
        for ours, theirs in zip(attacked, clean, strict=True):
            size = ours.shape[2]
            objectness, weights, weighted = [], [], []
            for anchor in range(3):
                for row in range(size):
                    for column in range(size):
                        a = ours[image, 7 * anchor : 7 * anchor + 7, row, column]
                        c = theirs[image, 7 * anchor : 7 * anchor + 7, row, column]
                        p, q = c.sigmoid().tolist(), a.sigmoid().tolist()
                        objectness.append(bernoulli(p[4], q[4]))
                        classes = (bernoulli(p[5], q[5]) + bernoulli(p[6], q[6])) / 2
                        offsets = (q[0] - p[0]) ** 2 + (q[1] - p[1]) ** 2 + float((a[2:4] - c[2:4]).square().sum())
                        weights.append(p[4])
                        weighted.append(p[4] * (0.5 * classes + 0.05 * offsets))
            total += sum(objectness) / len(objectness) + sum(weighted) / max(sum(weights), 1.0)
        expected.append(total)
    found = DetectionTask.of(model).divergence(attacked, clean)
    assert_close(found, torch.tensor(expected, dtype=torch.float64))
