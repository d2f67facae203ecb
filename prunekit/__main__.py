"""`python -m prunekit` is `prunekit`."""

from prunekit.cli import main

main()
