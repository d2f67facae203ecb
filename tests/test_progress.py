"""Bars on the console show a label that changes with the loop."""

from __future__ import annotations

import io

from rich.console import Console

from prunekit.console import ConsoleProgress


def test_a_bar_shows_its_label_anew_at_every_item() -> None:
    screen = io.StringIO()
    done = 0
    with ConsoleProgress(Console(file=screen, force_terminal=True, width=120)) as progress:
        for item in progress.track(range(3), lambda: f"training, loss 0.{done}", total=3):
            progress.message(f"step {item}")  # draws
            done += 1
    assert "training, loss 0.0" in screen.getvalue()
    assert "training, loss 0.2" in screen.getvalue()
    assert "training, loss 0.4" not in screen.getvalue()
