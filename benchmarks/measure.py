"""Run one process of one job, and print each sample as a line of JSON.

Usage: measure.py SUBJECT METHOD DIRECTORY SAMPLES STEPS
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from methods import Method, method, write
from models import Trainee, data
from plan import EPOCHS, FLOOR, Sample

BATCH = 32

# How many exports have a training step right after them that is timed.
STEPS_BESIDE = 5

# How many pairs of blocks of training steps, one with and one without an export, are timed.
PAIRS = 10

# Files that do not hold the values of variables.
GRAPH_FILES = {"saved_model.pb", "fingerprint.pb", "export.json", "variables.index"}


def main(subject: str, name: str, directory: str, samples: str, steps: str) -> None:
    path = Path(directory) / "versions"
    path.mkdir(parents=True)
    if subject == EPOCHS:
        measured = epochs(method(name, path), pairs=int(samples), steps=int(steps))
    elif name == FLOOR:
        measured = floor(Trainee(subject), path, rounds=int(samples))
    else:
        trainee = Trainee(subject)
        way = method(name, path, sample=trainee.batch[0])
        measured = exports(trainee, way, path, count=int(samples))
    for sample in measured:
        print(json.dumps(sample), flush=True)


def exports(trainee: Trainee, way: Method, directory: Path, count: int) -> Iterator[Sample]:
    """Export repeatedly, with a training step before each export."""
    trainee.step()
    preparing = _begin(trainee, way)
    for epoch in range(count):
        trainee.step()
        sample = _export(way, epoch)
        if epoch == 0:
            sample = {name: seconds + preparing for name, seconds in sample.items()}
        yield {**sample, **_sizes(_newest(directory)), "rss": _resident_memory()}
        _settle(directory)
    for epoch in range(count, count + STEPS_BESIDE):
        alone = _time(trainee.step)
        _request(way, epoch)
        beside = _time(trainee.step)
        way.wait()
        yield {"step": alone, "step_beside": beside}
        _settle(directory)
    yield from _lost(trainee, way, directory, count + STEPS_BESIDE, sample, alone)
    yield {"changed_bytes": trainee.changed_bytes()}


def _lost(
    trainee: Trainee, way: Method, directory: Path, epoch: int, export: Sample, step: float
) -> Iterator[Sample]:
    """Time blocks of training steps. An export comes before every other block.

    A block takes longer than the writing in the background. The difference is all that
    training loses, also because the writing slows the steps.
    """
    steps = 5 + math.ceil(1.5 * (export["servable"] - export["stall"]) / step)

    def block(epoch: int | None) -> float:
        start = time.perf_counter()
        if epoch is not None:
            _request(way, epoch)
        for _ in range(steps):
            trainee.step()
        seconds = time.perf_counter() - start
        if epoch is not None:
            way.wait()
            _settle(directory)
        return seconds

    for pair in range(PAIRS):
        # The order alternates, because a machine gets faster or slower with time.
        order = [epoch + pair, None] if pair % 2 else [None, epoch + pair]
        seconds = {each is not None: block(each) for each in order}
        yield {"lost": seconds[True] - seconds[False], "block": seconds[False]}


def floor(trainee: Trainee, directory: Path, rounds: int) -> Iterator[Sample]:
    """Copy the variables in memory, write them to a file, and flush it to the disk.

    The speed of a disk changes from minute to minute. To compare at the same speed,
    every round also has an export of this library, as `ours`.
    """
    way = method("ours", directory)
    trainee.step()
    _begin(trainee, way)
    copies = [np.zeros_like(array) for array in trainee.arrays()]
    for epoch in range(rounds):
        trainee.step()
        exported = _export(way, epoch)
        _settle(directory)
        trainee.step()
        arrays = trainee.arrays()
        start = time.perf_counter()
        for copy, array in zip(copies, arrays, strict=True):
            np.copyto(copy, array)
        copied = time.perf_counter()
        write(directory.with_name("floor"), arrays)
        written = time.perf_counter()
        size = sum(array.nbytes for array in arrays)
        yield {
            "stall": copied - start,
            "servable": written - copied,
            "bytes": size,
            "new_bytes": size,
            "ours": exported["servable"],
        }
        directory.with_name("floor").unlink()
        _settle(directory)


def epochs(way: Method, pairs: int, steps: int) -> Iterator[Sample]:
    """Fit MobileNetV2 with validation, and export at the end of every other epoch.

    The time from one validation's begin to the next includes the export: reading the
    weights that are validated, the wait of the training thread, and the work in the
    background. Processor time is measured as well, because other work on the machine
    disturbs it less.
    """
    model = Trainee("mobilenet").model
    alternate = _Alternate(way.callback)
    model.fit(
        *data(model, rows=BATCH * steps),
        validation_data=data(model, rows=BATCH * max(steps // 10, 1)),
        batch_size=BATCH,
        epochs=1 + 2 * pairs,  # One epoch comes before the first export.
        verbose=0,
        callbacks=[alternate],
    )
    epochs = alternate.epochs()
    for (wall, cpu), (wall_without, cpu_without) in zip(epochs[::2], epochs[1::2], strict=True):
        yield {
            "with": wall,
            "without": wall_without,
            "cpu_with": cpu,
            "cpu_without": cpu_without,
        }


class _Alternate(keras.callbacks.Callback):
    """A callback that shows every other epoch to another one, and times all epochs."""

    def __init__(self, callback: Any) -> None:
        super().__init__()
        self._callback = callback
        self._epoch = 0
        self._begins: list[tuple[float, float]] = []

    def epochs(self) -> list[tuple[float, float]]:
        """Return the seconds and processor seconds from each validation to the next."""
        return [
            (after[0] - before[0], after[1] - before[1])
            for before, after in itertools.pairwise(self._begins)
        ]

    def set_params(self, params: Any) -> None:
        self._callback.set_params(params)

    def set_model(self, model: Any) -> None:
        self._callback.set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        self._callback.on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        self._callback.on_epoch_begin(epoch, logs)

    def on_test_begin(self, logs: Any = None) -> None:
        self._begins.append((time.perf_counter(), time.process_time()))

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._epoch % 2 == 0:
            self._callback.on_test_batch_begin(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch % 2 == 0:
            self._callback.on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        self._callback.on_train_end(logs)


def _begin(trainee: Trainee, way: Method) -> float:
    """Tell the callback that training begins, and return how long it takes, in seconds."""
    way.callback.set_params({"epochs": 1, "steps": 1, "verbose": 0})
    way.callback.set_model(trainee.model)
    start = time.perf_counter()
    way.callback.on_train_begin()
    return time.perf_counter() - start


def _request(way: Method, epoch: int) -> None:
    """Let the callback export, as `fit` does. A method may write in the background."""
    way.callback.on_epoch_begin(epoch)
    way.callback.on_epoch_end(epoch, {"loss": 1.0})


def _export(way: Method, epoch: int) -> Sample:
    way.callback.on_epoch_begin(epoch)
    start = time.perf_counter()
    way.callback.on_epoch_end(epoch, {"loss": 1.0})
    returned = time.perf_counter()
    way.wait()
    return {"stall": returned - start, "servable": time.perf_counter() - start}


def _time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _newest(directory: Path) -> Path:
    return max(_entries(directory), key=lambda path: int(path.stem))


def _entries(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.stem.isdecimal()]


def _sizes(version: Path) -> Sample:
    """Return the size of a version, and the size of its files that no earlier version has."""
    files = [path for path in [version, *version.rglob("*")] if path.is_file()]
    new = {path: path.stat().st_size for path in files if path.stat().st_nlink == 1}
    graph = version / "saved_model.pb"
    return {
        "bytes": sum(path.stat().st_size for path in files),
        "new_bytes": sum(new.values()),
        "new_variable_bytes": sum(n for path, n in new.items() if path.name not in GRAPH_FILES),
        **({"graph_bytes": graph.stat().st_size} if graph.exists() else {}),
    }


def _settle(directory: Path) -> None:
    """Remove all versions except the newest, and leave the disk nothing to write."""
    newest = _newest(directory)
    for path in _entries(directory):
        if path.is_dir() and path != newest:
            shutil.rmtree(path)
        elif path != newest:
            path.unlink()
    os.sync()


def _resident_memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(*sys.argv[1:])
