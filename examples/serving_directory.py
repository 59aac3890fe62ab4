"""Publish to a directory that a server polls, and roll back a bad version.

Run it with ``python examples/serving_directory.py`` after ``pip install
"keras-export-callbacks[examples]"``; it takes about half a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from keras_export_callbacks import ExportDirectory, ExportEveryN

BASE = "served/polled"


class Server:
    """A stand-in for a model server. It looks for a newer version, and loads it."""

    def __init__(self) -> None:
        self._directory = ExportDirectory(BASE)
        self._artifact: Any = None
        self.version = 0

    def poll(self) -> None:
        newest = self._directory.versions()[-1]
        if newest != self.version:
            self._artifact = tf.saved_model.load(f"{BASE}/{newest}")
            self.version = newest

    def accuracy(self, images: Any, labels: Any) -> float:
        """Return the share of requests that it answers correctly."""
        predicted = np.argmax(self._artifact.serve(images), axis=1)
        return float(np.mean(predicted == labels))


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    requests = images[1400:], labels[1400:]
    server = Server()

    model = classifier()
    model.fit(images[:1400], labels[:1400], epochs=8, verbose=0, callbacks=[exports()])
    server.poll()
    print(f"version {server.version} answers {server.accuracy(*requests):.1%} correctly")

    print("\nA training with shuffled labels publishes a bad version:")
    mixed = np.random.default_rng(0).permutation(labels[:1400])
    classifier().fit(images[:1400], mixed, epochs=8, verbose=0, callbacks=[exports()])
    server.poll()
    print(f"version {server.version} answers {server.accuracy(*requests):.1%} correctly")

    print("\nRoll back in a shell on the serving machine, without TensorFlow:")
    shell("list", BASE)
    shell("rollback", BASE)
    server.poll()
    print(f"\nversion {server.version} answers {server.accuracy(*requests):.1%} correctly")
    shell("verify", BASE)


def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(32, activation="relu")
    model = keras.Sequential([keras.Input((64,), name="pixels"), hidden, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def exports() -> ExportEveryN:
    return ExportEveryN(BASE, n=8)  # Once, at the end of 8 epochs.


def shell(*arguments: str) -> None:
    print(f"\n$ keras-exports {' '.join(arguments)}", flush=True)
    subprocess.run([Path(sys.executable).with_name("keras-exports"), *arguments], check=True)


if __name__ == "__main__":
    main()
