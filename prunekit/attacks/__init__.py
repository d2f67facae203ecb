"""Adversarial attacks: images changed a little so that a model does as badly as possible."""

from prunekit.attacks.pgd import PRESETS, PgdConfig, pgd
from prunekit.attacks.steps import L2Step, LinfStep

__all__ = ["PRESETS", "L2Step", "LinfStep", "PgdConfig", "pgd"]
