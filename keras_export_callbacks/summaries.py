"""Writes an `ExportRecord` to TensorBoard."""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from . import texts
from .archive.store.local import check_directory
from .archive.store.paths import is_url, path_text
from .archive.store.record import ExportRecord, Scalar

# TensorBoard smooths every chart, and a summary cannot turn that off.
_JOINED = " TensorBoard joins the exports by a line. Set smoothing to 0 to see their values."


class SummaryWriter:
    """Writes the events of each export to the run of its base directory.

    The run is named ``exports/<last part of base_dir>``. If the run of another base
    directory has that name, the name gets more parts of the path.

    Args:
        log_dir: String or `PathLike`. TensorBoard's log directory, as `check_log_dir`
            returns it.
        base_dir: String. The absolute path of the base directory.
        parts: Int. The smallest number of parts of `base_dir` in the name of the run.
        hyperparameters: Dict. The hyperparameters of a trial in a search, by name. They go
            to the HParams dashboard.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        base_dir: str,
        parts: int = 1,
        hyperparameters: Mapping[str, Scalar] | None = None,
    ) -> None:
        self._hyperparameters = hyperparameters
        self._log_dir = os.fspath(log_dir)
        self._base_dir = base_dir
        self._parts = parts
        self._writer: Any = None
        # The open events file: its directory, the suffix of its name, and its path.
        self._directory = self._suffix = ""
        self._file: str | None = None
        self._earlier: deque[ExportRecord] = deque(maxlen=10)

    def write(self, record: ExportRecord) -> None:
        """Add the scalars and the summary of an export at its training step, and flush."""
        try:
            self._add(record)
        except Exception:
            # The file may end in half an event, and TensorBoard reads nothing after
            # that. The next export opens another file.
            with suppress(Exception):
                self.close()
            self._writer = self._file = None
            raise

    def _add(self, record: ExportRecord) -> None:
        if self._file is not None and not tf.io.gfile.exists(self._file):
            # Someone removed the logs. TensorFlow would go on writing to the removed file.
            self.close()
        if self._writer is None:
            self._open()
        step = record.step if record.step is not None else record.version
        with self._writer.as_default(step), tf.summary.record_if(True):
            for name, (value, description) in _scalars(record).items():
                tf.summary.scalar(f"export/{name}", float(value), description=description + _JOINED)
            tf.summary.text("export/summary", markdown(record, reversed(self._earlier)))
            if record.epoch is not None and record.value is not None and self._has_keras_runs():
                # Keras's `TensorBoard` callback uses this tag and step: both share a chart.
                tag = f"epoch_{str(record.monitor).removeprefix('val_')}"
                tf.summary.scalar(tag, record.value, record.epoch)
        self._writer.flush()
        if self._file is None:
            self._file = self._written_file()
        self._earlier.append(record)

    def _has_keras_runs(self) -> bool:
        """Return whether Keras's `TensorBoard` callback writes to the log directory.

        Without its curves, a chart with its name would show only the exports.
        """
        runs = ("train", "validation")
        return any(tf.io.gfile.isdir(f"{self._log_dir}/{run}") for run in runs)

    def _open(self) -> None:
        self._directory = self._run()
        # `_written_file` finds the file by this suffix.
        self._suffix = f".{uuid.uuid4().hex}.v2"
        self._writer = tf.summary.create_file_writer(self._directory, filename_suffix=self._suffix)
        if self._hyperparameters:
            with self._writer.as_default():
                known = {k: v for k, v in self._hyperparameters.items() if v is not None}
                # Without this name, TensorBoard would show a hash.
                hparams.hparams(known, "/".join(self._base_dir.split("/")[-2:]))

    def _written_file(self) -> str | None:
        """Return the path of the events file, or None if a store hides it until it is closed."""
        names = tf.io.gfile.listdir(self._directory)
        found = [name for name in names if name.endswith(self._suffix)]
        return f"{self._directory}/{found[0]}" if found else None

    def _run(self) -> str:
        """Return the directory of the run. A file in it has the path of the base directory."""
        parts = [part for part in self._base_dir.split("/") if part]
        for count in range(self._parts, max(self._parts, len(parts)) + 1):
            run = "/".join([self._log_dir, "exports", *parts[-count:]])
            owner = f"{run}/base_dir.txt"
            if not tf.io.gfile.exists(owner):
                tf.io.gfile.makedirs(run)
                with tf.io.gfile.GFile(owner, "w") as file:
                    file.write(self._base_dir)
                break
            with tf.io.gfile.GFile(owner) as file:
                if file.read() == self._base_dir:
                    break
        return run

    def close(self) -> None:
        """Close the events file. The next export opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = self._file = None


def _scalars(record: ExportRecord) -> dict[str, tuple[float, str]]:
    """Return the value and the description of each chart."""
    scalars = {
        "version": (record.version, "The number of each version, at the step of its export."),
        "stall_seconds": (record.stall_seconds, "How long training waited, in seconds."),
        "write_seconds": (
            record.write_seconds,
            "How long it took from the snapshot to the manifest, in seconds.",
        ),
        "size_bytes": (record.bytes, "Bytes of all files of the version. Shared files count, too."),
    }
    if record.monitor is not None and record.value is not None:
        text = f"`{record.monitor}` of each version that it triggered."
        scalars[record.monitor] = (record.value, text)
    return scalars


def check_log_dir(log_dir: str | os.PathLike[str]) -> str:
    """Return `log_dir` as an absolute path, so that the process may change its directory.

    A URL is returned unchanged, because TensorFlow can write to it.

    Raises:
        ExportError: If `log_dir` is not a path, or not a directory that can be written to.
    """
    text = path_text(log_dir, "log_dir=")
    if is_url(text):
        return text
    path = Path(os.path.abspath(text))
    check_directory(path, "log_dir")
    return str(path)


def markdown(record: ExportRecord, earlier: Iterable[ExportRecord] = ()) -> str:
    """Return a Markdown page about an export: its reason, its contents, and earlier exports."""
    rows = {
        "path": f"`{record.path}`",
        "epoch": texts.epoch(record) or "–",
        "step": _number(record.step),
        **texts.contents(record, "`"),
        "training waited": texts.duration(record.stall_seconds),
        "written in": texts.duration(record.write_seconds),
        "size": texts.size(record.bytes),
    }
    page = [
        f"### Version {record.version}: {texts.reason(record)}",
        _table([("", ""), *rows.items()]),
    ]
    before = [
        (
            str(other.version),
            texts.epoch(other) or "–",
            _number(other.step),
            texts.reason(other),
            texts.duration(other.stall_seconds),
            texts.size(other.bytes),
        )
        for other in earlier
    ]
    if before:
        titles = ("version", "epoch", "step", "reason", "training waited", "size")
        page += ["#### Earlier exports", _table([titles, *before])]
    return "\n\n".join(page)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a Markdown table. The first row is the head."""
    lines = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
    lines.insert(1, f"|{' --- |' * len(rows[0])}")
    return "\n".join(lines)


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
