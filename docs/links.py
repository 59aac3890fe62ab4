"""A hook of MkDocs: links to files outside of `docs/` lead to the repository.

The pages name such files by relative paths, which are right on GitHub and in a clone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Replace ``../examples/jax_fit.py`` by its address in the repository."""

    def address(match: re.Match[str]) -> str:
        name = match[1]
        # Other links stay as they are, and MkDocs reports them.
        return f"]({config.repo_url}/blob/main/{name}" if (_ROOT / name).exists() else match[0]

    return re.sub(r"\]\(\.\./([^)#]+)", address, markdown)
