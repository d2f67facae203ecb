"""The report's pages in a real browser: nothing fails to load, images show, and no page is wider than its window."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.pipeline import RunFolder
from prunekit.report import write_report, write_run_comparison
from tests.support.browser import find_browser, open_page
from tests.support.written_runs import written_run

WIDTHS = (1200, 400)
FAULTY = """<!doctype html><html><head><title>faulty</title></head><body style="margin: 0">
<img src="data:image/png;base64,AAAA" alt="broken"><img src="nowhere.png" alt="absent">
<div style="overflow-x: auto"><table style="width: 900px"><tr><td>in a box that scrolls</td></tr></table></div>
<table class="far" style="width: 900px"><tr><td>far too wide</td></tr></table>
<script>undefinedFunction()</script></body></html>"""


@pytest.fixture(autouse=True)
def _browser() -> None:
    find_browser()


def test_a_faulty_page_is_found_out(tmp_path: Path) -> None:
    page = tmp_path / "faulty.html"
    page.write_text(FAULTY)
    opened = open_page(page, 400, tmp_path)
    assert any("undefinedFunction" in error for error in opened.errors)
    assert any("nowhere.png" in error for error in opened.errors)
    assert opened.blank == ["broken", "absent"]
    assert (opened.images, opened.tables, opened.width) == (2, 2, 400)
    assert opened.page_width == 900
    assert "TABLE.far" in opened.wide
    assert "TABLE." not in opened.wide


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_of_a_run(shapes_run: RunFolder, tmp_path: Path, width: int) -> None:
    opened = open_page(write_report(shapes_run), width, tmp_path)
    assert (opened.errors, opened.blank, opened.wide) == ([], [], [])
    assert opened.page_width <= opened.width == width
    assert opened.images > 2
    assert opened.tables >= 1


@pytest.mark.parametrize("width", WIDTHS)
def test_the_comparison_of_runs(tmp_path: Path, width: int) -> None:
    of = ("unstructured", "scaled", "one-shot")
    runs = [
        written_run(tmp_path / name, seed, 1, (0, *of, 0.4, 0.2, "uniform", ""), (50, *of, 0.3, 0.1, "uniform", ""))
        for seed, name in enumerate(("a", "b"))
    ]
    opened = open_page(write_run_comparison(runs, tmp_path / "out"), width, tmp_path)
    assert (opened.errors, opened.blank, opened.wide) == ([], [], [])
    assert opened.page_width <= opened.width == width
    assert opened.tables == 2
