"""Kill a training, and resume it from its newest version as if nothing had happened.

Run it with ``python examples/resume.py`` after ``pip install
"keras-export-callbacks[examples]"``; it takes about half a minute.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_export_callbacks import ExportDirectory, ExportEveryN, restore

EPOCHS = 8


def main() -> None:
    for base_dir in ("served/resumed", "served/uninterrupted"):
        shutil.rmtree(base_dir, ignore_errors=True)  # Left by the last run of this example.

    print("Training in another process, until it is killed in epoch 5:", flush=True)
    killed = subprocess.run([sys.executable, __file__, "--killed"], check=False)
    assert killed.returncode == -signal.SIGKILL

    print("\nTraining again, from the newest version:")
    resumed = train("served/resumed")
    print("\nTraining without interruption, for comparison:")
    uninterrupted = train("served/uninterrupted")
    is_same = all(map(np.array_equal, resumed, uninterrupted))
    print(f"\nthe weights are {'the same, bit for bit' if is_same else 'different'}")


def train(base_dir: str, is_killed: bool = False) -> list[Any]:
    """Train to the last epoch, from the newest version if there is one. Return the weights."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,), name="pixels"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

    first_epoch = 0
    if ExportDirectory(base_dir).versions():
        record = restore(model, base_dir)  # With the optimizer and the seed of the dropout.
        first_epoch = record.epoch + 1
        print(f"going on from version {record.version}, after epoch {record.epoch}")

    exports = ExportEveryN(base_dir, keep=2)
    pixels, labels = load_digits(return_X_y=True)
    model.fit(
        pixels / 16,
        labels,
        initial_epoch=first_epoch,
        epochs=EPOCHS,
        shuffle=False,  # The order of a shuffle depends on the shuffles before it.
        verbose=2,
        callbacks=[exports, Killed(exports)] if is_killed else [exports],
    )
    return list(model.get_weights())


class Killed(keras.callbacks.Callback):
    """A callback that kills the process in epoch 5, as if the machine were taken away."""

    def __init__(self, exports: ExportEveryN) -> None:
        super().__init__()
        self._exports = exports

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 5:
            # These epochs take milliseconds. `last_export` waits until a version is written.
            assert self._exports.last_export is not None
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if "--killed" in sys.argv:
        train("served/resumed", is_killed=True)
    else:
        main()
