"""Measure how long `keras-exports list` and reading the manifests of many versions take.

Usage: python benchmarks/list_versions.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import keras

from keras_export_callbacks import ExportDirectory, Exporter, ExportRecord
from keras_export_callbacks.archive.store.record import MANIFEST, read_record
from keras_export_callbacks.archive.store.store import open_store

VERSIONS = (1_000, 10_000)
RUNS = 11


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for count in VERSIONS:
            base = Path(scratch, str(count))
            paths = _publish(base, count)
            print(f"{count:,} versions:")
            alone, ours = _seconds(lambda: _load(paths), lambda: _read(paths))  # noqa: B023
            print(f"  reading and json.loads alone: {alone:.3f} s")
            print(f"  reading records: {ours:.3f} s")
            directory = ExportDirectory(base)
            (deciding,) = _seconds(lambda: directory.best("loss", "min"))  # noqa: B023
            print(f"  a decision of ExportOnImprove, nothing changed: {deciding:.3f} s")
            command = [shutil.which("keras-exports", path=Path(sys.executable).parent), "list"]
            listing, bare = _seconds(
                lambda: _run([*command, base]),  # noqa: B023
                lambda: _run([sys.executable, "-c", "pass"]),
            )
            print(f"  keras-exports list: {listing:.3f} s")
            print(f"  starting Python alone: {bare:.3f} s")


def _publish(base: Path, count: int) -> list[Path]:
    """Export once, and copy the manifest to versions with other numbers."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with Exporter(base, model, log_dir=None) as exporter:
        first = exporter.export(step=1, metrics={"loss": 0.5}).result()
    copies = [_copy(first, base / str(version)) for version in range(2, count + 1)]
    return [Path(first.path), *copies]


def _copy(record: ExportRecord, path: Path) -> Path:
    (path / MANIFEST).parent.mkdir(parents=True)
    os.link(record.path / "saved_model.pb", path / "saved_model.pb")
    (path / MANIFEST).write_text(replace(record, version=int(path.name)).to_json())
    return path


def _load(paths: list[Path]) -> None:
    for path in paths:
        with open(path / MANIFEST, "rb") as file:
            json.loads(file.read())


def _read(paths: list[Path]) -> None:
    for path in paths:
        read_record(open_store(path))


def _run(command: list[str | Path | None]) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _seconds(*calls: Callable[[], object]) -> list[float]:
    """Return the median time of each call, in seconds. The calls take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(RUNS):
        for call, found in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return [median(found) for found in times]


if __name__ == "__main__":
    main()
