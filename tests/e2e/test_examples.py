"""The examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_quickstart() -> None:
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "quickstart.py"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    accuracy = re.search(r"accuracy on 450 images that training never saw: ([\d.]+)%", ran.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 90
    assert "served prediction" in ran.stdout
