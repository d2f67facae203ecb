"""What several test files share: oracles, random problems and nets, compilers and emulators, commands."""

from pathlib import Path

#: The repository's folder.
ROOT = Path(__file__).parents[2]
