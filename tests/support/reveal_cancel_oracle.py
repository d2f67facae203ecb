"""RevealCancel in plain numpy, float64, term by term as Shrikumar et al. (2017) write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.support.deeplift_oracle import ACTIVATIONS, Array, Step, _patches, _patches_of_padded, _per_channel, forward


def reveal_cancel(steps: Sequence[Step], x: Array, x_ref: Array, out_weights: Array) -> dict[str, Array]:
    """Return the signed contributions [N, K, C, R, S] of each convolution, for the target Σ out_weights · output."""
    x_ref = np.broadcast_to(x_ref, x.shape)
    values, references = forward(steps, x), forward(steps, x_ref)
    rises, falls = [np.maximum(x - x_ref, 0)], [np.minimum(x - x_ref, 0)]
    for place, step in enumerate(steps):
        rise, fall = _forward_step(step, values, references, rises, falls)
        np.testing.assert_allclose(rise + fall, values[place + 1] - references[place + 1], atol=1e-12)
        rises.append(rise)
        falls.append(fall)
    up, down = ([np.zeros_like(value) for value in values] for _ in range(2))
    up[-1] += out_weights
    down[-1] += out_weights
    contributions: dict[str, Array] = {}
    for place in reversed(range(len(steps))):
        step = steps[place]
        i = step.inputs[0]
        if step.kind == "conv":
            contributions[f"layers.{place}"], m = _conv(
                step.options, rises[i] + falls[i], up[place + 1], down[place + 1]
            )
            up[i] += m
            down[i] += m
        elif step.kind == "activation":
            up[i] += up[place + 1] * rises[place + 1] / rises[i]
            down[i] += down[place + 1] * falls[place + 1] / falls[i]
        elif step.kind == "norm":
            scale = _per_channel(up[i], step.options["scale"])
            up[i] += scale * np.where(scale > 0, up[place + 1], down[place + 1])
            down[i] += scale * np.where(scale > 0, down[place + 1], up[place + 1])
        else:
            for j in step.inputs:
                up[j] += up[place + 1]
                down[j] += down[place + 1]
    return contributions


def _forward_step(
    step: Step, values: list[Array], references: list[Array], rises: list[Array], falls: list[Array]
) -> tuple[Array, Array]:
    i = step.inputs[0]
    rise, fall, reference = rises[i], falls[i], references[i]
    if step.kind == "conv":
        terms = [
            step.options["weight"][None, :, :, r, s, None, None] * patch[:, None]
            for r, s, patch in _patches(rise + fall, step.options)
        ]  # [N, K, C, P, Q] each
        positive: Array = sum(np.maximum(term, 0).sum(axis=2) for term in terms)
        negative: Array = sum(np.minimum(term, 0).sum(axis=2) for term in terms)
        return positive, negative
    if step.kind == "norm":
        scale = _per_channel(rise, step.options["scale"])
        return np.where(scale > 0, scale * rise, scale * fall), np.where(scale > 0, scale * fall, scale * rise)
    if step.kind == "activation":
        f = ACTIVATIONS[step.options["name"]]
        both = f(reference + rise + fall)
        first = f(reference + rise) - f(reference) + both - f(reference + fall)
        second = f(reference + fall) - f(reference) + both - f(reference + rise)
        return first / 2, second / 2
    assert step.kind == "add"
    return rise + rises[step.inputs[1]], fall + falls[step.inputs[1]]


def _conv(options: dict[str, Any], delta: Array, up: Array, down: Array) -> tuple[Array, Array]:
    """Return the weights' contributions and the multiplier of the input."""
    weight, stride, padding = options["weight"], options.get("stride", 1), options.get("padding", 0)
    contributions = np.zeros((len(delta), *weight.shape))
    padded = np.zeros((*delta.shape[:2], delta.shape[2] + 2 * padding, delta.shape[3] + 2 * padding))
    views = _patches_of_padded(padded, weight.shape, stride)
    for (r, s, patch), (_, _, view) in zip(_patches(delta, options), views, strict=True):
        w = weight[None, :, :, r, s, None, None]
        term = w * patch[:, None]  # [N, K, C, P, Q]
        m_up, m_down = up[:, :, None], down[:, :, None]
        m = np.where(term > 0, m_up, np.where(term < 0, m_down, (m_up + m_down) / 2))
        contributions[:, :, :, r, s] = (term * m).sum(axis=(3, 4))
        view += (w * m).sum(axis=1)
    return contributions, padded[:, :, padding : padding + delta.shape[2], padding : padding + delta.shape[3]]
