"""The tests, in folders named as the rooms of prunekit; what several files share is in `tests.support`."""
