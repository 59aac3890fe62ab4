"""Measure what the callbacks' hooks add to a training step that exports nothing.

Usage: KERAS_BACKEND=jax python benchmarks/hooks.py
"""

from __future__ import annotations

import tempfile
import time
from statistics import median
from typing import Any

import keras
import numpy as np

from keras_export_callbacks import ExportEveryN

STEPS = 2_000
ROUNDS = 5


class _Empty(keras.callbacks.Callback):
    """A callback with a batch hook. Keras then waits for the device after each batch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        pass


def main() -> None:
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    random = np.random.default_rng(0)
    x = random.random((32 * STEPS, 64), dtype="float32")
    y = random.integers(0, 10, len(x))
    with tempfile.TemporaryDirectory() as directory:
        rare: dict[str, list[Any]] = {
            "no callback": [],
            "an empty batch hook": [_Empty()],
            "unit='epoch'": [ExportEveryN(f"{directory}/epoch", 10**6, log_dir=None)],
            "unit='batch'": [ExportEveryN(f"{directory}/batch", 10**9, unit="batch", log_dir=None)],
        }
        seconds: dict[str, list[float]] = {name: [] for name in rare}
        for callbacks in rare.values():  # The first fit traces.
            model.fit(x[:320], y[:320], verbose=0, callbacks=callbacks)
        for _ in range(ROUNDS):
            for name, callbacks in rare.items():
                start = time.perf_counter()
                model.fit(x, y, batch_size=32, verbose=0, callbacks=callbacks)
                seconds[name].append((time.perf_counter() - start) / STEPS)
    alone = median(seconds["no callback"])
    print(f"Keras on {keras.backend.backend()}, {STEPS:,} steps, medians of {ROUNDS} fits:")
    for name, values in seconds.items():
        print(f"  {name}: {1e6 * median(values):.0f} µs a step, ratio {median(values) / alone:.3f}")


if __name__ == "__main__":
    main()
