"""Search hyperparameters, export from every trial, and publish the winner for serving.

Run it with ``python examples/tuner_search.py`` after ``pip install
"keras-export-callbacks[examples,tuner]"``; it takes about a minute.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_tuner
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_export_callbacks import ExportDirectory, ExportOnImprove
from keras_export_callbacks.tuner import ExportTrials, publish_best


def build_model(hp: Any) -> keras.Model:
    units = hp.Int("units", 8, 64, step=8)
    model = keras.Sequential(
        [
            keras.Input((64,), name="pixels"),
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dropout(hp.Float("dropout", 0.0, 0.5)),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    optimizer = keras.optimizers.Adam(hp.Float("rate", 1e-3, 1e-1, sampling="log"))
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    pixels, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(pixels / 16, labels, random_state=0)
    tuner = keras_tuner.RandomSearch(
        ExportTrials(build_model),
        objective="val_accuracy",
        max_trials=4,
        seed=1,
        directory="search",
        project_name="digits",
    )
    tuner.search(
        x,
        y,
        validation_data=(x_test, y_test),
        epochs=4,
        verbose=0,
        callbacks=[ExportOnImprove("trials", monitor="val_accuracy", keep=1)],
    )
    for trial in tuner.oracle.get_best_trials(4):
        (record,) = ExportDirectory(f"trials/trial_{trial.trial_id}/execution_0").records()
        print(f"trial {trial.trial_id}: {record.value:.4f} at epoch {record.epoch}, "
              f"{record.hyperparameters}")  # fmt: skip

    served = publish_best(tuner, "trials", "serving/digits")
    artifact = tf.saved_model.load(str(served.path))
    digits = tf.argmax(artifact.serve(tf.constant(x_test[:8], tf.float32)), axis=-1)
    print(f"published trial {served.trial} as {served.path}")
    print(f"it predicts {digits.numpy().tolist()}, the labels are {y_test[:8].tolist()}")
    print("Compare the trials with: tensorboard --logdir logs")


if __name__ == "__main__":
    main()
