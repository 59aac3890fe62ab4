"""`ExportRecord` → TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from .archive.paths import check_base_dir, is_url, path_text
from .archive.record import EndpointInfo, ExportRecord, Scalar, TensorInfo


class SummaryWriter:
    """Writes the events of each export to a run of its own.

    Args:
        log_dir: the directory TensorBoard is started with, from `check_log_dir`.
        run: the run's name below ``exports/``.
        hyperparameters: for the HParams dashboard, of a trial of a search.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        run: str,
        hyperparameters: Mapping[str, Scalar] | None = None,
    ) -> None:
        self._hyperparameters = hyperparameters
        self._path = f"{os.fspath(log_dir)}/exports/{run}"
        self._writer: Any = None

    def write(self, record: ExportRecord) -> None:
        """Add one export's scalars and summary at its training step, and flush."""
        try:
            self._add(record)
        except Exception:
            # Half an event may be in the file, after which TensorBoard reads no more
            # of it. The next export opens another.
            with suppress(Exception):
                self.close()
            self._writer = None
            raise

    def _add(self, record: ExportRecord) -> None:
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self._path)
            if self._hyperparameters:
                with self._writer.as_default():
                    known = {k: v for k, v in self._hyperparameters.items() if v is not None}
                    hparams.hparams(known)
        step = record.step if record.step is not None else record.version
        scalars = {
            "version": record.version,
            "stall_seconds": record.stall_seconds,
            "write_seconds": record.write_seconds,
            "size_bytes": record.bytes,
        }
        if record.monitor is not None and record.value is not None:
            scalars[record.monitor] = record.value
        with self._writer.as_default(step), tf.summary.record_if(True):
            for name, value in scalars.items():
                tf.summary.scalar(f"export/{name}", float(value))
            tf.summary.text("export/summary", markdown(record))
        self._writer.flush()

    def close(self) -> None:
        """Close the events file; the next export opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def check_log_dir(log_dir: str | os.PathLike[str]) -> str:
    """`log_dir` as it is wherever the process goes; a URL, which TensorFlow can write to, as is.

    Raises:
        ExportError: it is no path, or no directory that can be written to.
    """
    text = path_text(log_dir, "log_dir=")
    if is_url(text):
        return text
    path = Path(os.path.abspath(text))
    check_base_dir(path, "log_dir")
    return str(path)


def markdown(record: ExportRecord) -> str:
    """A Markdown table that tells what was exported."""
    rows = {
        "version": str(record.version),
        "path": f"`{record.path}`",
        "reason": record.reason,
        "epoch": "–" if record.epoch is None else str(record.epoch),
        "step": "–" if record.step is None else str(record.step),
        **{f"metric `{name}`": f"{value:.6g}" for name, value in record.metrics.items()},
        **{f"endpoint `{name}`": _signature(info) for name, info in record.endpoints.items()},
        **{f"collection `{name}`": f"{n} variables" for name, n in record.collections.items()},
    }
    lines = [f"| {_escaped(name)} | {_escaped(value)} |" for name, value in rows.items()]
    return "\n".join(["| export | |", "| --- | --- |", *lines])


def _signature(info: EndpointInfo) -> str:
    def described(tensors: Any) -> str:
        return ", ".join(f"`{name}`: {_tensor(tensor)}" for name, tensor in tensors.items())

    return f"{described(info.inputs)} → {described(info.outputs)}"


def _tensor(info: TensorInfo) -> str:
    if info.shape is None:
        return f"{info.dtype} of any shape"
    axes = ", ".join("any" if axis is None else str(axis) for axis in info.shape)
    return f"{info.dtype} ({axes})"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
