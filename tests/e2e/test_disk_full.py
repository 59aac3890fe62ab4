"""A disk that gets full costs the export that it interrupts, and nothing else."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import keras
import pytest
import tensorflow as tf
from support.models import data
from support.versions import tree
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from keras_export_callbacks import (
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    ExportRecord,
)
from keras_export_callbacks.summaries import SummaryWriter

pytestmark = pytest.mark.slow

OnError = Literal["raise", "warn"]

FULL = "No space left on device|File too large"


# Two ways to have little room.


class Disk(Protocol):
    """Where exports go."""

    path: Path

    def room(self, size: int) -> AbstractContextManager[None]:
        """Let no file of more than `size` bytes be written within a ``with`` block."""


class SmallDisk:
    """A file system in memory. All that is written into `room` together has to fit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._limit("mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=1000", "tmpfs")

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        ballast = self.path / "ballast"
        ballast.write_bytes(bytes(self._free_bytes() - size))
        assert self._free_bytes() == size
        try:
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def inodes(self, count: int) -> Iterator[None]:
        """Let that many files and directories be made within a ``with`` block."""
        status = os.statvfs(self.path)
        used = status.f_files - status.f_ffree
        self._limit("mount", "-o", f"remount,nr_inodes={used + count}")
        assert os.statvfs(self.path).f_ffree == count
        try:
            yield
        finally:
            self._limit("mount", "-o", "remount,nr_inodes=1000")

    def close(self) -> None:
        # An error that was raised may still hold a file open.
        self._limit("umount", "--lazy")

    def _free_bytes(self) -> int:
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def _limit(self, *command: str) -> None:
        subprocess.run([*command, str(self.path)], check=True, capture_output=True, text=True)


class SizeLimit:
    """The disk there is, with a limit to the size of each file, which any user may set."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def small_disk(own_directory: Path) -> Iterator[SmallDisk]:
    try:
        disk = SmallDisk(own_directory / "disk")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"No file system can be mounted here: {getattr(error, 'stderr', error)}")
    yield disk
    disk.close()


@pytest.fixture(params=["small disk", "size limit"])
def disk(request: pytest.FixtureRequest, own_directory: Path) -> Disk:
    if request.param == "size limit":
        return SizeLimit(own_directory)
    small: SmallDisk = request.getfixturevalue("small_disk")
    return small


# What is exported, and what is told.


def a_model(units: int) -> Any:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    return model


def fit(model: Any, callback: Any, epochs: int = 1, metrics: int = 0) -> None:
    """Train four steps in each epoch, with as many metrics of long names in the logs."""
    many = {f"a_metric_of_a_name_that_is_long_{i:04}": 0.5 for i in range(metrics)}
    log = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(many))
    model.fit(*data(), batch_size=8, epochs=epochs, verbose=0, callbacks=[log, callback])


def told(on_error: OnError, act: Callable[[], Any]) -> str:
    """What `act` tells of a full disk, once and with its cause, in the way that was asked for."""
    if on_error == "raise":
        with pytest.raises(ExportError, match=FULL) as raised:
            act()
        # Keras's traceback filter drops `__cause__` in `fit`.
        cause = raised.value.__cause__ or raised.value.__context__
        assert isinstance(cause, OSError | tf.errors.OpError)
        return str(raised.value)
    with pytest.warns(UserWarning, match=FULL) as warned:
        act()
    (warning,) = warned
    return str(warning.message)


def assert_sound(base_dir: Path, versions: int) -> None:
    """There are so many versions, none of which lacks anything, and nothing else."""
    directory = ExportDirectory(base_dir)
    assert directory.versions() == list(range(1, versions + 1))
    assert [directory.verify(version) for version in directory.versions()] == [[]] * versions
    assert sorted(os.listdir(base_dir)) == sorted(map(str, directory.versions()))


# Moments.


@dataclass(frozen=True)
class Moment:
    """When the disk gets full.

    Attributes:
        exports: how many there were before.
        units: how large the model is.
        room: how many bytes are left.
        refused: a part of the path of the first file that does not fit.
    """

    exports: int
    units: int
    room: int
    refused: str


MOMENTS = {
    "graph": Moment(0, units=8, room=20_480, refused="/saved_model.pb"),
    "variables of the first export": Moment(0, 50_000, 409_600, "/variables/"),
    "variables of a later export": Moment(1, 50_000, 409_600, "/variables/"),
}


@pytest.mark.parametrize("on_error", ["raise", "warn"])
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_while_a_version_is_written(disk: Disk, moment: Moment, on_error: OnError) -> None:
    base = disk.path / "base"
    base.mkdir()
    model = a_model(moment.units)
    callback = ExportEveryN(base, log_dir=None, on_error=on_error)
    for _ in range(moment.exports):
        fit(model, callback)
    before = tree(base)
    with disk.room(moment.room):
        message = told(on_error, lambda: fit(model, callback))
    assert moment.refused in message
    assert tree(base) == before
    assert int(model.optimizer.iterations) == 4 * (moment.exports + 1)
    # What was told already would be told here again.
    fit(model, callback)
    assert [record.version for record in callback.exports] == [*range(1, moment.exports + 2)]
    assert_sound(base, moment.exports + 1)


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_at_the_commit(disk: Disk, on_error: OnError) -> None:
    base = disk.path / "base"
    model = a_model(8)
    callback = ExportEveryN(base, log_dir=None, on_error=on_error)
    fit(model, callback)
    with disk.room(28_672):
        # All but a large manifest fits, which is the last of the files.
        fit(model, callback)
    before = tree(base)
    with disk.room(28_672):
        told(on_error, lambda: fit(model, callback, metrics=1000))
    assert tree(base) == before
    fit(model, callback, metrics=1000)
    assert [record.version for record in callback.exports] == [1, 2, 3]
    assert len(callback.exports[-1].metrics) > 1000
    assert_sound(base, 3)


def test_training_goes_on_while_the_disk_stays_full(disk: Disk) -> None:
    base = disk.path / "base"
    model = a_model(8)
    callback = ExportEveryN(base, log_dir=None, on_error="warn")
    fit(model, callback)
    before = tree(base)
    with disk.room(0), pytest.warns(UserWarning, match=FULL) as warned:
        fit(model, callback, epochs=3)
    assert len(warned) == 3
    assert int(model.optimizer.iterations) == 16
    assert tree(base) == before
    fit(model, callback)
    assert_sound(base, 2)


def test_what_did_not_change_is_linked_after_a_failure_too(disk: Disk) -> None:
    """Else the next export needs more room than any before, on a disk that has little."""
    base = disk.path / "base"
    model = a_model(50_000)
    model.layers[0].trainable = False
    callback = ExportEveryN(base, log_dir=None, on_error="warn")
    fit(model, callback)
    fit(model, callback)
    with disk.room(0), pytest.warns(UserWarning, match=FULL):
        fit(model, callback)
    fit(model, callback)
    files = {path.name: path for path in (base / "2").rglob("*") if path.is_file()}
    shared = [name for name, path in files.items() if path.stat().st_nlink == 3]
    assert "saved_model.pb" in shared
    assert any(".data-" in name for name in shared)


@pytest.mark.parametrize("exports", [0, 1], ids=["first export", "later export"])
@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_at_whatever_step_the_disk_is_full(small_disk: SmallDisk, what: str, exports: int) -> None:
    """With nothing left, then a little more each time until an export fits."""
    base = small_disk.path / "base"
    base.mkdir()
    failures = 0
    with Exporter(base, a_model(8), log_dir=None) as exporter:
        for _ in range(exports):
            exporter.export().result()
        before = tree(base)
        while True:
            left = small_disk.room(4096 * failures) if what == "bytes" else None
            with left or small_disk.inodes(failures):
                error = exporter.export().exception()
            if error is None:
                break
            with pytest.raises(ExportError, match=FULL):
                exporter.wait()
            assert tree(base) == before, f"with {failures} left"
            failures += 1
    assert failures > 2
    assert_sound(base, exports + 1)


# After publishing.


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_before_the_events_are_written(small_disk: SmallDisk, on_error: OnError) -> None:
    logs = small_disk.path / "logs"
    model = a_model(8)
    callback = ExportEveryN("base", log_dir=logs, on_error=on_error)
    fit(model, callback)
    with small_disk.room(0):
        message = told("warn", lambda: fit(model, callback))
    assert "Version 2 was published, but a later step failed" in message
    fit(model, callback)
    assert_sound(Path("base"), 3)
    assert reported(logs) == [1, 3]


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_while_events_are_written(
    disk: Disk, on_error: OnError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of events, which grows with each export, ends within an event."""
    logs = disk.path / "logs"
    followed: list[ExportRecord] = []
    written: list[ExportRecord] = []
    original = SummaryWriter.write

    def write(writer: SummaryWriter, record: ExportRecord) -> None:
        original(writer, record)
        written.append(record)

    monkeypatch.setattr(SummaryWriter, "write", write)
    exporter = Exporter(
        "base", a_model(8), log_dir=logs, on_error=on_error, on_export=followed.append
    )

    def export_until_events_fail() -> None:
        for _ in range(50):
            exporter.export().result()
            if len(written) < len(followed):
                break
        exporter.wait()

    with exporter:
        exporter.export().result()
        with disk.room(4096 if isinstance(disk, SizeLimit) else 0):
            message = told("warn", export_until_events_fail)
        last = exporter.exports[-1].version
        assert f"Version {last} was published, but a later step failed" in message
        exporter.export().result()
    assert_sound(Path("base"), last + 1)
    assert {*reported(logs)} >= {*range(1, last), last + 1}
    assert [record.version for record in followed] == [*range(1, last + 2)]


def reported(logs: Path) -> list[int]:
    """The versions that TensorBoard shows."""
    accumulator = EventAccumulator(str(logs / "exports" / "base"), {"tensors": 0})
    accumulator.Reload()
    events = accumulator.Tensors("export/version")
    return [int(make_ndarray(event.tensor_proto).item()) for event in events]
