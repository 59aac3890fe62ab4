"""Train on JAX, export while training, and serve the best version without JAX.

Run it with ``python examples/jax_fit.py`` after ``pip install
"keras-export-callbacks[examples,jax]"``; it takes about half a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_export_callbacks import ExportDirectory, ExportEveryN, ExportOnImprove, KeepLatest

BEST = Path("served/jax_digits")

# What a server would run. It needs TensorFlow and the artifact, and neither JAX nor Keras.
SERVE = """
import sys
sys.modules["jax"] = None  # As if JAX were not installed.
import numpy as np, tensorflow as tf
artifact = tf.saved_model.load(sys.argv[1])
with np.load(sys.argv[2]) as data:
    predicted = artifact.serve(data["images"]).numpy().argmax(axis=1)
    print(f"accuracy without JAX: {(predicted == data['labels']).mean():.1%}")
"""


def main() -> None:
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((64,), name="image"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    best = ExportOnImprove(
        BEST, "val_accuracy", sample_inputs=images[:2], log_dir=None, baseline=0.0
    )
    by_step = ExportEveryN(
        "served/jax_digits_by_step", n=20, unit="batch", keep=KeepLatest(2), log_dir=None
    )
    model.fit(
        images[:1500],
        labels[:1500],
        batch_size=64,
        epochs=5,
        verbose=0,
        validation_data=(images[1500:], labels[1500:]),
        callbacks=[best, by_step],
    )
    for record in best.exports:
        print(
            f"version {record.version}: val_accuracy {record.value:.3f}, training waited "
            f"{1000 * record.stall_seconds:.1f} ms"
        )
    print(f"by step: {[record.step for record in by_step.exports]}")

    newest = ExportDirectory(BEST).latest()
    np.savez("digits.npz", images=images[1500:], labels=labels[1500:])
    subprocess.run([sys.executable, "-c", SERVE, str(newest.path), "digits.npz"], check=True)


if __name__ == "__main__":
    main()
