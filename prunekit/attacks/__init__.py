"""Adversarial attacks: images changed a little so that a model does as badly as possible."""

from prunekit.attacks.autoattack import AutoAttackConfig
from prunekit.attacks.carlini_wagner import CarliniWagnerConfig
from prunekit.attacks.classification import (
    classification_losses,
    cross_entropy_per_image,
    margin_per_image,
    softmax_divergence,
)
from prunekit.attacks.gradient import GradientError
from prunekit.attacks.held import held_perturbation, moved
from prunekit.attacks.identity import attack_identity
from prunekit.attacks.losses import Attack, AttackInParts, AttackLosses, LossPerImage
from prunekit.attacks.overload import OverloadConfig, soft_count
from prunekit.attacks.patch import PatchConfig, PatchState, draw_placement, pasted, random_patch, trained_step
from prunekit.attacks.pgd import PgdConfig, fgsm, pgd, uniform_noise
from prunekit.attacks.presets import PRESETS, attack_named, register_attack
from prunekit.attacks.steps import L2Step, LinfStep
from prunekit.attacks.strong import StrongConfig

__all__ = [
    "PRESETS",
    "Attack",
    "AttackInParts",
    "AttackLosses",
    "AutoAttackConfig",
    "CarliniWagnerConfig",
    "GradientError",
    "L2Step",
    "LinfStep",
    "LossPerImage",
    "OverloadConfig",
    "PatchConfig",
    "PatchState",
    "PgdConfig",
    "StrongConfig",
    "attack_identity",
    "attack_named",
    "classification_losses",
    "cross_entropy_per_image",
    "draw_placement",
    "fgsm",
    "held_perturbation",
    "margin_per_image",
    "moved",
    "pasted",
    "pgd",
    "random_patch",
    "register_attack",
    "soft_count",
    "softmax_divergence",
    "trained_step",
    "uniform_noise",
]
