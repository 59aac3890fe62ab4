"""The training process that the kill tests kill. It can also kill itself at a given step."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_export_callbacks import ExportEveryN, ExportOnImprove, KeepLatest
from keras_export_callbacks.archive import writer
from keras_export_callbacks.archive.store import publish

# Every step of an export and of a removal, as the function that takes it.
STEPS: dict[str, tuple[Any, str]] = {
    "make a directory": (os, "mkdir"),
    "save the graph": (tf.saved_model, "save"),
    "write variables": (tf.raw_ops, "SaveV2"),
    "join shards": (tf.raw_ops, "MergeV2Checkpoints"),
    "link a file": (os, "link"),
    "write a file": (Path, "write_bytes"),
    "write the fingerprint": (writer, "fingerprint_for"),
    "flush": (os, "fsync"),
    "flush the manifest": (publish, "sync"),
    "rename": (os, "rename"),
    "delete": (shutil, "rmtree"),
    "unlock": (os, "close"),
}


class Falling(keras.callbacks.Callback):
    """A callback that adds a metric which rises and falls, so that only some epochs improve."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert logs is not None
        logs["score"] = float(np.random.default_rng(epoch).normal() - epoch / 10)


def train(base_dir: str, epochs: int = 10_000, die: tuple[str, bool, int] | None = None) -> None:
    """Export after every batch and on improvement, until the process is killed or done.

    Args:
        base_dir: String. The versions go to ``base_dir/every`` and ``base_dir/best``.
        epochs: Int. The number of epochs. Each has two batches.
        die: When the process kills itself, or None: the name of a step in `STEPS`, True
            for before or False for after the step, and at which call of the step.
    """
    if die is not None:
        _die_at(*die)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    callbacks = [
        Falling(),
        ExportEveryN(
            f"{base_dir}/every", unit="batch", keep=KeepLatest(2), log_dir=None, background=False
        ),
        ExportOnImprove(f"{base_dir}/best", "score", mode="min", keep=2, log_dir=None),
    ]
    x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    model.fit(x, y, batch_size=4, epochs=epochs, verbose=0, callbacks=callbacks)


def _die_at(step: str, before: bool, count: int) -> None:
    owner, name = STEPS[step]
    original: Callable[..., Any] = getattr(owner, name)
    left = [count]

    def fatal(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return original(*args, **kwargs)
        finally:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, fatal)
