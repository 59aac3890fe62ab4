"""Every code block of the README runs as it stands, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.processes import run_python

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_code_blocks_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    printed = run_python("\n".join(blocks))
    assert "served/classifier/" in printed
