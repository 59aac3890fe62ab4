"""How long `keras-exports list` takes on a directory of 1,000 versions.

Usage: python benchmarks/list_versions.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import keras

from keras_export_callbacks import ExportDirectory, Exporter

VERSIONS = 1000
RUNS = 11


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch, "base")
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        with Exporter(base, model, log_dir=None) as exporter:
            first = exporter.export(step=1, metrics={"loss": 0.5}).result()
        directory = ExportDirectory(base)
        while directory.versions()[-1] < VERSIONS:
            directory.publish(first.path)
        command = [shutil.which("keras-exports", path=Path(sys.executable).parent), "list", base]
        bare = [sys.executable, "-c", "pass"]
        print(f"keras-exports list, {VERSIONS} versions: {_seconds(command):.3f} s")
        print(f"starting Python alone: {_seconds(bare):.3f} s")


def _seconds(command: list[str | Path | None]) -> float:
    """The median time of a command."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - start)
    return median(times)


if __name__ == "__main__":
    main()
