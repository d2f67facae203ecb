"""What an attack's results depend on: its class and all its numbers, not the name that a preset gives it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from prunekit.attacks.losses import Attack


def attack_identity(attack: Attack | None) -> dict[str, Any]:
    """Return the attack's class and every field, ready for JSON; {} for none.

    Two attacks with equal identities do the same. One that is no dataclass is known by its public attributes; a plain
    function, which has none, only by its name.
    """
    if attack is None:
        return {}
    kind: Any = attack if hasattr(attack, "__qualname__") else type(attack)  # a function, or an object's class
    is_dataclass = dataclasses.is_dataclass(attack) and not isinstance(attack, type)
    fields = dataclasses.asdict(attack) if is_dataclass else getattr(attack, "__dict__", {})  # type: ignore[call-overload]
    public = {name: value for name, value in fields.items() if not name.startswith("_")}
    identity: dict[str, Any] = {"attack": f"{kind.__module__}.{kind.__qualname__}", **public}
    return dict(json.loads(json.dumps(identity, default=repr)))
