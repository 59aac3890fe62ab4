"""A training process that is killed, and resumes from Keras's backup."""

from __future__ import annotations

import os
import signal
from typing import Any

import keras

from keras_export_callbacks import ExportEveryN, ExportOnImprove

from .models import CLASSES, FEATURES, data

EPOCHS = 5


class Kill(keras.callbacks.Callback):
    """A callback that kills the process at the first `hook` of an epoch, as the system would."""

    def __init__(self, epoch: int, hook: str) -> None:
        super().__init__()
        self._epoch, self._hook = epoch, hook
        self._now = -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._now = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._at("batch")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._at("epoch")

    def _at(self, hook: str) -> None:
        if (self._now, hook) == (self._epoch, self._hook):
            os.kill(os.getpid(), signal.SIGKILL)


def a_model() -> Any:
    """Return a classifier without dropout, because `BackupAndRestore` saves no seeds."""
    keras.utils.set_random_seed(7)
    hidden = keras.layers.Dense(8, activation="relu")
    model = keras.Sequential([keras.Input((FEATURES,)), hidden, keras.layers.Dense(CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def train(base: str, epoch: int = -1, hook: str = "") -> None:
    """Train with exports before each backup. Kill the process between the two, or in an epoch."""
    model = a_model()
    options: dict[str, Any] = {"log_dir": None, "background": False}
    callbacks = [
        ExportEveryN(f"{base}/every", **options),
        ExportEveryN(f"{base}/steps", 3, unit="batch", **options),
        ExportOnImprove(f"{base}/best", "val_loss", **options),
        Kill(epoch, hook),
        keras.callbacks.BackupAndRestore(f"{base}/backup"),
    ]
    x, y = data()
    model.fit(
        x, y, batch_size=8, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks,
        validation_data=data(seed=1),
    )  # fmt: skip
