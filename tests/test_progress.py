"""Bars on the console show a label that changes with the loop, and the time that is left."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from prunekit.console import ConsoleProgress, Pace


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def _after(pace: Pace, clock: list[float], *seconds: float) -> str:
    for each in seconds:
        clock[0] += each
        pace.step()
    return pace.left(10)


def test_steps_of_minutes_have_a_time_left_and_it_runs_down(clock: list[float]) -> None:
    pace = Pace()
    assert pace.left(10) == "-:--:--"
    assert _after(pace, clock, 200) == "0:33:20"
    assert _after(pace, clock, 200, 200) == "0:33:20"
    clock[0] += 80
    assert pace.left(10) == "0:32:00"
    clock[0] += 10_000
    assert pace.left(10) == "0:00:00"


def test_what_was_done_earlier_says_little_about_the_rest(clock: list[float]) -> None:
    pace = Pace()
    _after(pace, clock, *[0.001] * 50)
    assert _after(pace, clock, *[100.0] * 3) > "0:15:00"  # of 16:40; the mean of all is 1 minute


def test_a_loop_of_many_short_steps_is_averaged(clock: list[float]) -> None:
    assert _after(Pace(), clock, *[0.5, 1.5] * 100) == "0:00:10"


def test_bars_show_it() -> None:
    screen = io.StringIO()
    with ConsoleProgress(Console(file=screen, force_terminal=True, width=120)) as progress:
        for _ in progress.track(range(2), "working", total=2):
            progress._bars.refresh()
    shown = re.findall(r"left (\S+)", re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue().replace("\r", " ")))
    assert (shown[0], shown[-1]) == ("-:--:--", "0:00:00")
