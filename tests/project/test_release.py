"""What a release rests on: one version, notes on it, a whole source distribution, workflows without secrets."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml

import prunekit
from tests.support import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def declared() -> str:
    found = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    return found[1]


def test_the_package_has_the_version_that_it_was_installed_with() -> None:
    try:
        assert prunekit.__version__ == version("prunekit")
    except PackageNotFoundError:
        assert prunekit.__version__ == "0+unknown"


def test_the_changelog_tells_of_the_version_and_of_what_is_to_come() -> None:
    headings = re.findall(r"^## \[(.*)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == declared()
    assert re.fullmatch(r" - \d{4}-\d{2}-\d{2}", headings[1][1])


def test_no_other_file_repeats_the_version() -> None:
    places = [ROOT / "CITATION.cff", ROOT / "setup.py", ROOT / "prunekit" / "__init__.py", ROOT / "README.md"]
    assert not [path.name for path in places if declared() in path.read_text()]


def test_the_source_distribution_has_all_that_belongs_to_the_project() -> None:
    """MANIFEST.in names whatever lies at the top, beside what setuptools takes by itself."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    tops = {name.split("/")[0] for name in listed.stdout.splitlines()}
    if not tops:
        pytest.skip("needs a clone, to know what belongs to it")
    named = set((ROOT / "MANIFEST.in").read_text().split())
    assert tops - named == {"prunekit", "pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in", ".github"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_need_no_secrets_and_may_only_read(path: Path) -> None:
    text = path.read_text()
    assert "secrets." not in text
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
