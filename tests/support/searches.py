"""Small KerasTuner searches on real images of digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import keras_tuner
from sklearn.datasets import load_digits

from keras_export_callbacks import ExportDirectory

PIXELS, LABELS = load_digits(return_X_y=True)
X, Y = (PIXELS / 16).astype("float32"), LABELS


def build(hp: Any) -> Any:
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(hp.Int("units", 4, 32), activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    optimizer = keras.optimizers.Adam(hp.Float("rate", 1e-3, 1e-1, sampling="log"))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def search(tuner: Any, *callbacks: Any, **options: Any) -> None:
    options = {"epochs": 2, "verbose": 0} | options
    tuner.search(
        X[:300], Y[:300], validation_data=(X[300:500], Y[300:500]),
        callbacks=list(callbacks), **options,
    )  # fmt: skip


def random_search(hypermodel: Any, **options: Any) -> Any:
    options = {"objective": "val_accuracy", "max_trials": 2, "seed": 3} | options
    return keras_tuner.RandomSearch(hypermodel, directory="search", **options)


def exported(base: str = "trials") -> dict[tuple[str, str], list[Any]]:
    """Return the records of every trial and execution, and assert that all versions verify."""
    found = {}
    for execution in sorted(Path(base).glob("trial_*/execution_*")):
        directory = ExportDirectory(execution)
        assert all(directory.verify(version) == [] for version in directory.versions())
        found[execution.parent.name, execution.name] = directory.records()
    return found
