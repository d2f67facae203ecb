"""Options and values that were spelled the British way before: accepted for one version, with a note."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from prunekit.cli.ending import error_console

_OPTIONS = {
    "--greyscale": "--grayscale",
    "--no-greyscale": "--no-grayscale",
    "--optimise-epochs": "--optimize-epochs",
    "--optimise-learning-rate": "--optimize-learning-rate",
    "--optimise-scores": "--optimize-scores",
}
_OLD_VALUE, _VALUE = "optimised", "optimized"  # of --pruning


class RespellingGroup(TyperGroup):
    """A group of commands that reads the old spellings as the new ones."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line as if it had been typed with the new spellings."""
        respelled = respell(args)
        for old, new in zip(args, respelled, strict=True):
            if old != new:
                error_console.print(f"Note: {old} is spelled {new} now; the old spelling will go.", highlight=False)
        return super().parse_args(ctx, respelled)


def respell(args: list[str]) -> list[str]:
    """Return a command line's arguments with the new spellings in the old ones' places."""
    new = [_respell_option(argument) for argument in args]
    for index in range(1, len(new)):
        if new[index - 1] == "--pruning":
            new[index] = _respell_value(new[index])
    return new


def _respell_option(argument: str) -> str:
    name, equals, value = argument.partition("=")
    value = _respell_value(value) if name == "--pruning" else value
    return _OPTIONS.get(name, name) + equals + value


def _respell_value(value: str) -> str:
    return ",".join(_VALUE if name.strip() == _OLD_VALUE else name for name in value.split(","))
