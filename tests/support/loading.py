"""Load versions in a process that never imports TensorFlow's Python package."""

from __future__ import annotations

import sys

import numpy as np

from keras_export_callbacks.archive.parity.c_library import Session


def load(path: str) -> None:
    """Load a version with TensorFlow's C library, and run it."""
    outputs = Session(path).run("serve", {"inputs": np.ones((1, 2), "float32")})
    assert np.isfinite(outputs["output_0"]).all()
    assert "tensorflow" not in sys.modules
