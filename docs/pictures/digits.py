"""The data and the model of the pictures: scikit-learn's handwritten digits."""

from __future__ import annotations

from typing import Any

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def digits() -> tuple[Any, Any, Any, Any]:
    """Return images and labels for training, then images and labels for validation."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    x, val_x, y, val_y = train_test_split(images, labels, random_state=0, stratify=labels)
    return x, y, val_x, val_y


def classifier(learning_rate: float) -> Any:
    """Return a compiled model. Its weights are the same each time."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    optimizer = keras.optimizers.Adam(learning_rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
