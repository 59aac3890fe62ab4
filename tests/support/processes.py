"""Other processes, for what must hold outside the one that exported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from . import c_loader


def run_python(script: str, *args: str) -> str:
    """What a fresh interpreter prints when it runs `script`, which must succeed."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *args],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def run_in_c(path: Path, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs of a signature, from TensorFlow's C library in a process of its own."""
    np.savez("c_inputs.npz", **inputs)
    script = Path(c_loader.__file__).read_text()
    run_python(script, str(path), signature, "c_inputs.npz", "c_outputs.npz")
    with np.load("c_outputs.npz") as outputs:
        return dict(outputs)
