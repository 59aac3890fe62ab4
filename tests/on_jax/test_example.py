"""`examples/jax_fit.py` runs as it stands, twice in one directory."""

from __future__ import annotations

import re
from pathlib import Path

from support.processes import run_python

EXAMPLE = Path(__file__).parents[2] / "examples" / "jax_fit.py"


def test_the_example_for_jax() -> None:
    for _ in range(2):
        printed = run_python(f"import runpy; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')")
        values = [float(text) for text in re.findall(r"val_accuracy ([\d.]+)", printed)]
        assert values == sorted(values)
        assert "by step: [20, 40, 60, 80, 100, 120]" in printed
        served = re.search(r"accuracy without JAX: ([\d.]+)%", printed)
        assert served is not None
        assert float(served[1]) > 80
