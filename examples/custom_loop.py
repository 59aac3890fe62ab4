"""Export from a training loop of your own, with `GradientTape`, in two ways.

Run it with ``python examples/custom_loop.py``; it takes about half a minute.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from keras_export_callbacks import ExportDirectory, Exporter, ExportOnImprove

EPOCHS = 5


def main() -> None:
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype("float32")
    train = tf.data.Dataset.from_tensor_slices((pixels[:1400], labels[:1400]))
    train = train.shuffle(1400, seed=0).batch(32)

    print("An Exporter, called after each epoch:")
    model, step = network()
    with Exporter("served/by_exporter", model, keep=2) as exporter:
        for epoch in range(EPOCHS):
            loss = np.mean([step(x, y) for x, y in train])
            accuracy = measure(model, pixels[1400:], labels[1400:])
            exporter.export(epoch=epoch, metrics={"loss": loss, "accuracy": accuracy})
    show("served/by_exporter")

    print("The callbacks of `fit`, driven by hand:")
    model, step = network()
    # `mode="auto"` knows only the metrics that a model is compiled with.
    best = ExportOnImprove("served/by_callback", monitor="val_accuracy", mode="max")
    callbacks = keras.callbacks.CallbackList([best], model=model, epochs=EPOCHS)
    callbacks.on_train_begin()
    for epoch in range(EPOCHS):
        callbacks.on_epoch_begin(epoch)
        loss = np.mean([step(x, y) for x, y in train])
        accuracy = measure(model, pixels[1400:], labels[1400:])
        callbacks.on_epoch_end(epoch, {"loss": loss, "val_accuracy": accuracy})
    callbacks.on_train_end()
    show("served/by_callback")


def network() -> tuple[keras.Model, Any]:
    """A model, and a function that takes one training step and returns the loss."""
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(32, activation="relu")
    model = keras.Sequential([keras.Input((64,)), hidden, keras.layers.Dense(10)])
    # The loop uses the model's optimizer, because that one is exported.
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return model, step


def measure(model: keras.Model, x: Any, y: Any) -> float:
    return float(np.mean(np.argmax(model(x, training=False), axis=-1) == y))


def show(base_dir: str) -> None:
    for record in ExportDirectory(base_dir).records():
        print(f"  {record.path}: epoch {record.epoch}, step {record.step}, {record.metrics}")


if __name__ == "__main__":
    main()
