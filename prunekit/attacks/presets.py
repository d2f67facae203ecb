"""The attacks that have a name on the command line."""

from __future__ import annotations

from prunekit.attacks.autoattack import AutoAttackConfig
from prunekit.attacks.carlini_wagner import CarliniWagnerConfig
from prunekit.attacks.losses import Attack
from prunekit.attacks.overload import OverloadConfig
from prunekit.attacks.pgd import PgdConfig, fgsm
from prunekit.attacks.strong import StrongConfig
from prunekit.errors import InputError
from prunekit.registry import look_up, register

# The L∞ radius of the report on robust pruning of YOLOv3, 12.75/255.
EPS = 0.05
# Euclidean; what ImageNet models are commonly attacked with at 224×224 pixels.
EPS_L2 = 3.0

PAPER = PgdConfig(EPS, step_size=0.02, steps=5)
STANDARD = PgdConfig(EPS, step_size=0.01, steps=20, random_start=True)

# What HYDRA trains and validates with (Sehwag et al. 2020).
HYDRA = PgdConfig(8 / 255, step_size=2 / 255, steps=10, random_start=True)

# What robust accuracy of CIFAR's images is mostly reported under, beside AutoAttack.
PGD20 = PgdConfig(8 / 255, step_size=2 / 255, steps=20, random_start=True)

PRESETS: dict[str, Attack] = {
    "fgsm": fgsm(EPS),
    # What the report used.
    "paper": PAPER,
    # The same ball, searched more thoroughly.
    "standard": STANDARD,
    "hydra": HYDRA,
    "pgd20": PGD20,
    "strong": StrongConfig(EPS),
    # At the radius that classifiers of CIFAR's images are compared at.
    "autoattack": AutoAttackConfig(8 / 255),
    "cw": CarliniWagnerConfig(),
    "fgsm-l2": fgsm(EPS_L2, norm="l2"),
    "standard-l2": PgdConfig(EPS_L2, step_size=EPS_L2 / 8, steps=20, norm="l2", random_start=True),
    "strong-l2": StrongConfig(EPS_L2, norm="l2"),
    # On milliseconds rather than on accuracy.
    "latency": OverloadConfig(EPS, step_size=0.01, steps=20),
}
#: What commands take in a preset's place, and what it is: an attack of such a name would never be made.
_NO_PRESETS = {"none": "clean images", "patch": "a patch that is trained on half of the images"}


def register_attack(name: str, attack: Attack) -> None:
    """Add an attack of one's own; InputError when the name is taken, or means something else to commands."""
    if name in _NO_PRESETS:
        raise InputError(f"Expected a new name for the attack, got {name!r}, which stands for {_NO_PRESETS[name]}.")
    register(PRESETS, "attack", name, attack)


def attack_named(name: str) -> Attack:
    """Return the attack of this name; InputError, which lists the names, if there is none."""
    return look_up(PRESETS, "the attack", name)
