"""`prunekit` and `python -m prunekit`: the command line, or one sentence where its packages are missing."""

from __future__ import annotations

import sys

from prunekit.extras import MissingExtraError, check_extra


def main() -> None:
    """Run the command line; exit with code 2 where the extra "study" is not installed."""
    try:
        check_extra("study", "prunekit's command line")
    except MissingExtraError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    from prunekit.cli import main as run

    run()


if __name__ == "__main__":
    main()
