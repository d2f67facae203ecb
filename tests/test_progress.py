"""Bars on the console show a label that changes with the loop."""

from __future__ import annotations

import io

from rich.console import Console

from prunekit.console import ConsoleProgress


def test_a_bar_shows_its_label_anew_at_every_item() -> None:
    screen = io.StringIO()
    done: list[int] = []
    with ConsoleProgress(Console(file=screen, force_terminal=True, width=120)) as progress:
        for item in progress.track(range(3), lambda: f"training, loss 0.{len(done)}", total=3):
            progress._bars.refresh()
            done.append(item)
    assert done == [0, 1, 2]
    seen = [f"training, loss 0.{count}" in screen.getvalue() for count in range(5)]
    assert seen[:3] == [True, True, True]
    assert not seen[4]
