"""Fine-tune the head of a model with a frozen base. The versions share the base's bytes.

Run it with ``python examples/fine_tuning.py`` after ``pip install
"keras-export-callbacks[examples]"``; it takes about half a minute.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_export_callbacks import ExportDirectory, ExportEveryN, ExportRecord


def main() -> None:
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8, 1).astype("float32")
    is_small = labels < 5

    base = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(256, activation="relu"),
        ],
        name="base",
    )
    print("Training on the digits 0 to 4 ...")
    with_head(base).fit(images[is_small], labels[is_small], epochs=5, verbose=2)

    print("\nA new head for the digits 5 to 9, on the frozen base, exported after every epoch:")
    base.trainable = False
    x, x_test, y, y_test = train_test_split(
        images[~is_small], labels[~is_small] - 5, random_state=0, stratify=labels[~is_small]
    )
    exports = ExportEveryN("served/fine_tuned", verbose=1)
    with_head(base).fit(
        x, y, validation_data=(x_test, y_test), epochs=5, verbose=2, callbacks=[exports]
    )

    print("\nversion  size     newly written")
    for record in ExportDirectory("served/fine_tuned").records():
        print(f"{record.version:<9}{kilobytes(record.bytes):<9}{kilobytes(new_bytes(record))}")

    newest = exports.exports[-1]
    artifact = tf.saved_model.load(str(newest.path))
    right = tf.argmax(artifact.serve(x_test), axis=1).numpy() == y_test
    print(f"\nserved by version {newest.version}: {right.mean():.1%} of the digits are right")


def with_head(base: keras.Model) -> keras.Model:
    model = keras.Sequential([base, keras.layers.Dense(5, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def new_bytes(record: ExportRecord) -> int:
    """Return the bytes that no earlier version has. The other files are hard links."""
    earlier = {
        path.stat().st_ino
        for version in range(1, record.version)
        for path in (record.path.parent / str(version)).rglob("*")
    }
    stats: list[Any] = [record.path.joinpath(name).stat() for name in record.files]
    return sum(stat.st_size for stat in stats if stat.st_ino not in earlier)


def kilobytes(count: float) -> str:
    return f"{count / 1000:.0f} kB"


if __name__ == "__main__":
    main()
