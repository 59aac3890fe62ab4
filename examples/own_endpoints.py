"""Export an endpoint that takes image files and returns the names of digits.

Run it with ``python examples/own_endpoints.py``; it takes about half a minute.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

from keras_export_callbacks import (
    ExportArchive,
    ExportDirectory,
    ExportOnImprove,
    standard_endpoints,
)

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main() -> None:
    digits = load_digits()
    images, labels = digits.images[..., None] / 16.0, digits.target
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    callback = ExportOnImprove(
        "served/digits_png",
        "val_accuracy",
        endpoints=register,
        # Each version is compared with the model on these, before it is published.
        sample_inputs=png(images[:2]),
        keep=2,
    )
    model.fit(images, labels, epochs=5, validation_split=0.2, verbose=2, callbacks=[callback])

    # Ask the directory, because an earlier run may have published the best version.
    best = ExportDirectory("served/digits_png").best("val_accuracy", "max")
    assert best is not None
    artifact = tf.saved_model.load(str(best.path))
    answer = artifact.classify(png(images[-3:]))
    for truth, names, scores in zip(labels[-3:], answer["names"], answer["scores"], strict=True):
        guesses = [
            f"{name.decode()} {score:.2f}"
            for name, score in zip(names.numpy(), scores, strict=True)
        ]
        print(f"{NAMES[truth]:>6}: {', '.join(guesses)}")


def register(archive: ExportArchive, model: keras.Model) -> None:
    """Register `classify`, which takes image files, and the standard endpoints."""
    words = tf.constant(NAMES)

    def decode(file: Any) -> Any:
        image = tf.io.decode_image(file, channels=1, expand_animations=False)
        return tf.image.resize(tf.cast(image, tf.float32) / 255, (8, 8))

    def classify(files: Any) -> Any:
        images = tf.map_fn(decode, files, fn_output_signature=tf.TensorSpec((8, 8, 1)))
        top = tf.math.top_k(model(images, training=False), k=3)
        return {"names": tf.gather(words, top.indices), "scores": top.values}

    # The first endpoint is also `serving_default`.
    archive.add_endpoint("classify", classify, [tf.TensorSpec((None,), tf.string, "files")])
    standard_endpoints(archive, model)


def png(images: Any) -> Any:
    """Encode images of shape (n, 8, 8, 1) and values from 0 to 1 as PNG files."""
    pixels = tf.cast(255 * images, tf.uint8)
    return tf.stack([tf.io.encode_png(image) for image in pixels])


if __name__ == "__main__":
    main()
