"""What the site's pages have beside their Markdown: each example's page section shows the script itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_HEADING = re.compile(r"^## \[.*\]\(\./(\w+\.py)\)$", re.MULTILINE)
_FOLDER = Path(__file__).parent / "examples"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Put the code of each script below its heading; mkdocs calls this for every page."""
    if page.file.src_uri != "examples/README.md":
        return markdown
    return _HEADING.sub(lambda found: f"## {found[1]}\n\n{_code(found[1])}", markdown)


def _code(name: str) -> str:
    return f"```python\n{(_FOLDER / name).read_text()}```"
