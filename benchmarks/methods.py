"""The methods of exporting. Each is a Keras callback that exports after every epoch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from models import arrays_of

from keras_export_callbacks import ExportArchive, ExportEveryN, standard_endpoints
from keras_export_callbacks.archive.graph.signatures import model_signature


@dataclass(frozen=True)
class Method:
    """One way to export.

    Attributes:
        callback: Keras callback that exports in `on_epoch_end`, at once or in the
            background.
        wait: Function that returns when the last export is complete.
    """

    callback: Any
    wait: Callable[[], None] = lambda: None


def method(name: str, directory: Path, sample: Any = None) -> Method:
    """Return a method of exporting.

    Args:
        name: String. The name of the method.
        directory: The directory that gets an entry for each export.
        sample: A batch of inputs, for the method that compares each export on it.
    """
    if name == "ours-sample":
        return _ours(directory, sample_inputs=sample)
    return _METHODS[name](directory)


def _ours(
    directory: Path, endpoints: Any = standard_endpoints, sample_inputs: Any = None
) -> Method:
    published = threading.Semaphore(0)

    def wait() -> None:
        if not published.acquire(timeout=600):
            raise TimeoutError(f"Nothing was published in '{directory}'.")

    callback = ExportEveryN(
        directory,
        endpoints=endpoints,
        log_dir=directory.with_name("logs"),
        sample_inputs=sample_inputs,
        on_export=lambda record: published.release(),
    )
    return Method(callback, wait)


def _serve_only(archive: ExportArchive, model: Any) -> None:
    archive.track(model)
    archive.add_endpoint("serve", lambda x: model(x, training=False), model_signature(model))


class _Synchronous(keras.callbacks.Callback):
    """A callback that exports by a function of the model and the path, while training waits."""

    def __init__(self, directory: Path, export: Callable[[Any, str], None]) -> None:
        super().__init__()
        self._directory = directory
        self._export = export

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._export(self.model, str(self._directory / str(epoch + 1)))


def _reference(directory: Path) -> Method:
    def export(model: Any, path: str) -> None:
        _keras_archive(model).write_out(path, verbose=False)

    return Method(_Synchronous(directory, export))


def _reference_again(directory: Path) -> Method:
    archives: list[Any] = []

    def export(model: Any, path: str) -> None:
        if not archives:
            archives.append(_keras_archive(model))
        archives[0].write_out(path, verbose=False)

    return Method(_Synchronous(directory, export))


def _keras_archive(model: Any) -> Any:
    """Return Keras's own archive, with what `standard_endpoints` registers."""
    signature = [tf.TensorSpec((None, *model.input_shape[1:]), "float32")]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", lambda x: model(x, training=False), signature)
    archive.add_endpoint("call_training", lambda x: model(x, training=True), signature)
    archive.add_variable_collection("optimizer_variables", model.optimizer.variables)
    return archive


def _model_export(directory: Path) -> Method:
    return Method(
        _Synchronous(directory, lambda model, path: model.export(path, verbose=False)),
    )


def _model_checkpoint(directory: Path) -> Method:
    return Method(keras.callbacks.ModelCheckpoint(str(directory / "{epoch}.keras")))


class _PlainWrite(keras.callbacks.Callback):
    """A callback that copies the variables, and writes them to one file on a thread."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._copies: list[Any] = []
        self._thread = threading.Thread()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        arrays = arrays_of(self.model)
        # Fresh memory takes longer than memory that was written to before.
        self._copies = self._copies or [np.zeros_like(array) for array in arrays]
        for copy, array in zip(self._copies, arrays, strict=True):
            np.copyto(copy, array)
        path = self._directory / str(epoch + 1)
        self._thread = threading.Thread(target=write, args=(path, self._copies))
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()


def _plain(directory: Path) -> Method:
    callback = _PlainWrite(directory)
    return Method(callback, callback.wait)


def write(path: Path, arrays: list[Any]) -> None:
    """Write all arrays to one file with plain file I/O, and flush it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    for array in arrays:
        content = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        while content:
            content = content[os.write(descriptor, content) :]
    os.fsync(descriptor)
    os.close(descriptor)
    parent = os.open(path.parent, os.O_RDONLY)
    os.fsync(parent)
    os.close(parent)


def _orbax(directory: Path) -> Method:
    callback = keras.callbacks.OrbaxCheckpoint(str(directory), max_to_keep=None)
    return Method(callback, callback.wait_until_finished)


_METHODS: dict[str, Callable[[Path], Method]] = {
    "ours": _ours,
    "ours-inference": lambda directory: _ours(directory, _serve_only),
    "reference": _reference,
    "reference-again": _reference_again,
    "model-export": _model_export,
    "model-checkpoint": _model_checkpoint,
    "orbax": _orbax,
    "plain": _plain,
}
