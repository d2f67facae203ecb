"""The Python of the README and of docs/plugging-in.md runs as it stands there, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prunekit.ops.native import native_status
from tests.support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run_examples(page: Path, number: int, replaced: dict[str, str]) -> dict[str, object]:
    """Run all Python of a page in its order, and return what it leaves behind."""
    text = page.read_text()
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == number
    names: dict[str, object] = {}
    exec(compile("\n".join(blocks), page.name, "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))


def test_the_readmes_examples_run() -> None:
    run_examples(ROOT / "README.md", 2, {})


@pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}")
def test_plugging_in_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    # The size of the page's measurements takes minutes; the same lines run at another.
    run_examples(ROOT / "docs" / "plugging-in.md", 9, {"224, 224": "64, 64", "resnet50()": "resnet50(width=0.25)"})
    printed = capsys.readouterr().out
    assert printed.count("ms before") == 3
    assert "blocks.15.body.6" in printed
    assert (tmp_path / "fast.safetensors").stat().st_size > 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_linked_file_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert links or page.name != "README.md"
    assert [link for link in links if not (page.parent / link).exists()] == []
