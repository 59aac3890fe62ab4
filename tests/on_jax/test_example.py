"""The examples for JAX run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

from support.processes import run_python

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> str:
    """What an example prints. Devices are not split for it, as they are for the other tests."""
    path = str(EXAMPLES / name)
    return run_python(f"import runpy; runpy.run_path({path!r}, run_name='__main__')", XLA_FLAGS="")


def test_jax_fit() -> None:
    printed = run("jax_fit.py")
    values = [float(text) for text in re.findall(r"val_accuracy ([\d.]+)", printed)]
    assert values == sorted(values)
    assert "by step: [20, 40, 60, 80, 100, 120]" in printed
    served = re.search(r"accuracy without JAX: ([\d.]+)%", printed)
    assert served is not None
    assert float(served[1]) > 80


def test_several_hosts() -> None:
    printed = run("several_hosts.py")
    assert re.search(r"host 0 published [1-4] of the best, and by step \[10, 20, .*60\]", printed)
    assert "host 1 published 0 of the best, and by step []" in printed
    assert re.search(r"hosts: versions with their problems: \{1: \[\][^a-z]*\n", printed)
    assert "hosts_by_step: versions with their problems: {5: [], 6: []}" in printed
