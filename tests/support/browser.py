"""A headless Chromium that opens a page and says what it found: errors, images, what is wider than the window."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from html import unescape
from pathlib import Path

import pytest

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
_SECONDS = 300  # a browser that has not ended by then hangs, however busy the machine is
# Put into a copy of the page, before all else: collects errors, and writes what is asked for when all is loaded.
_PROBE = """<script>
const errors = [];
addEventListener("error", e => errors.push(e.message || "not loaded: " + (e.target.src || e.target.href)), true);
addEventListener("load", () => {
  const width = document.documentElement.clientWidth;
  const scrolls = e => e && (getComputedStyle(e).overflowX === "auto" || scrolls(e.parentElement));
  const wide = [...document.querySelectorAll("body *")].filter(
    e => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement));
  const images = [...document.images];
  const found = {
    errors, width, page_width: document.documentElement.scrollWidth, images: images.length,
    blank: images.filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.alt),
    tables: document.querySelectorAll("table").length, wide: wide.map(e => e.tagName + "." + e.className),
  };
  const text = document.createElement("pre");
  text.id = "found", text.textContent = JSON.stringify(found);
  document.documentElement.appendChild(text);
});
</script>"""


@dataclass(frozen=True)
class Opened:
    """What a browser says of a page.

    Attributes:
        errors: Of scripts, and of what could not be loaded.
        width: Of the window inside, in CSS pixels.
        page_width: What the page wants; more than `width` has to be scrolled sideways.
        images: How many there are.
        blank: Texts of the images that were not decoded.
        tables: How many there are.
        wide: Elements that leave the window to the right, other than those in a box that scrolls by itself.
    """

    errors: list[str]
    width: int
    page_width: int
    images: int
    blank: list[str]
    tables: int
    wide: list[str]


@cache
def browser() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def find_browser() -> str:
    """The browser's path; tests skip without one."""
    if (path := browser()) is None:
        pytest.skip("needs Chromium: apt install chromium-headless-shell")
    return path


def open_page(page: Path, width: int, folder: Path) -> Opened:
    """Open a copy of a page in a window of so many pixels; the copy and the browser's profile are in `folder`."""
    probed = folder / f"{page.stem}-{width}.html"
    probed.write_text(page.read_text().replace("<head>", f"<head>{_PROBE}", 1))
    assert _PROBE in probed.read_text(), "a page has a head"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    flags += [f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000"]
    command = [find_browser(), *flags, "--dump-dom", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return Opened(**json.loads(unescape(found[1])))
