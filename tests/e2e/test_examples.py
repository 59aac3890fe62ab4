"""The examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> str:
    """What an example prints."""
    ran = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_quickstart() -> None:
    printed = run("quickstart.py")
    accuracy = re.search(r"accuracy on 450 images that training never saw: ([\d.]+)%", printed)
    assert accuracy is not None
    assert float(accuracy[1]) > 90
    assert "served prediction" in printed


@pytest.mark.slow
def test_own_endpoints() -> None:
    answers = run("own_endpoints.py").splitlines()[-3:]
    # The truth, then three guesses with their scores.
    found = [
        re.fullmatch(r" *(\w+): (\w+) [\d.]+, \w+ [\d.]+, \w+ [\d.]+", line) for line in answers
    ]
    assert sum(match[1] == match[2] for match in found if match) >= 2
    assert all(found)
