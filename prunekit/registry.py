"""Names for things that users can add to: a name means one thing, and an unknown one lists those that are known."""

from __future__ import annotations

from typing import TypeVar

from prunekit.errors import InputError

T = TypeVar("T")


def register(registry: dict[str, T], kind: str, name: str, value: T) -> None:
    """Add a value under a new name.

    Args:
        registry: What the kind's names mean.
        kind: For the messages: "attack".
        name: What command lines and files call it; no comma, since options list names by commas.
        value: What it means.

    Raises:
        InputError: When the name is taken, empty or cannot be typed in a list.
    """
    if not name or name != name.strip() or "," in name or ":" in name:
        raise InputError(f"Expected a name for the {kind} without commas, colons and outer spaces, got {name!r}.")
    if name in registry:
        raise InputError(f"Expected a new name for the {kind}, got {name!r}, which is registered already.")
    registry[name] = value


def look_up(registry: dict[str, T], kind: str, name: str) -> T:
    """Return what a name means; InputError, which lists the known names, if it is unknown."""
    if name not in registry:
        raise InputError(f"Expected {kind} to be one of {', '.join(registry)}, got {name!r}.")
    return registry[name]
