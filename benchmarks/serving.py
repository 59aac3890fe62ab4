"""Measure how long a version of MobileNetV2 takes to answer, by the backend that it was written on.

Usage: python benchmarks/serving.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import tensorflow as tf

CALLS = 50
BATCHES = (1, 8)

EXPORT = """
import keras, sys
from keras_export_callbacks import Exporter
model = keras.applications.MobileNetV2((96, 96, 3), weights=None, classes=1000)
with Exporter(sys.argv[1], model, log_dir=None) as exporter:
    exporter.export()
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        for backend in ("tensorflow", "jax"):
            base = Path(directory, backend)
            subprocess.run(
                [sys.executable, "-c", EXPORT, base],
                env=os.environ | {"KERAS_BACKEND": backend},
                check=True,
            )
            version = tf.saved_model.load(str(base / "1"))
            for rows in BATCHES:
                x = tf.constant(np.ones((rows, 96, 96, 3), "float32"))
                first, *later = [_seconds(version.serve, x) for _ in range(CALLS)]
                print(
                    f"written on {backend}, batch of {rows}: first call {1e3 * first:.0f} ms, "
                    f"later {1e3 * median(later):.1f} ms"
                )


def _seconds(function: Callable[[tf.Tensor], object], x: tf.Tensor) -> float:
    start = time.perf_counter()
    function(x)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
