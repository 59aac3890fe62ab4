"""Train on several devices at once with `MirroredStrategy`, and export as on one device.

Run it with ``python examples/multi_device.py``; it takes about half a minute. It splits
the CPU into two logical devices. On a machine with GPUs, use the GPUs instead.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from keras_export_callbacks import ExportEveryN

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8, 1).astype("float32")
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(8, 3, activation="relu"),
                keras.layers.BatchNormalization(),
                keras.layers.Flatten(),
                keras.layers.Dense(10),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"])
    callback = ExportEveryN("served/mirrored", verbose=1)
    model.fit(images, labels, batch_size=64, epochs=8, verbose=2, callbacks=[callback])

    assert callback.last_export is not None
    artifact = tf.saved_model.load(str(callback.last_export.path))  # Without any strategy.
    predicted = np.argmax(artifact.serve(images), axis=-1)
    evaluated = model.evaluate(images, labels, verbose=0, return_dict=True)["accuracy"]
    print(f"{strategy.num_replicas_in_sync} replicas; on the same images the model's accuracy is "
          f"{evaluated:.3f}, the artifact's {np.mean(predicted == labels):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
