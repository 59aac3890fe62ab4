"""Train on real digits, export while training, and serve the best version elsewhere.

Run it from the repository with `make demo`, or from any directory after
``pip install "keras-export-callbacks[examples]"``. It trains a small convolutional
network on scikit-learn's handwritten digits, and takes about a minute.
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
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_export_callbacks import ExportDirectory, ExportEveryN, ExportOnImprove, KeepLatest

EVERY_OTHER = Path("served/digits_every_other_epoch")
BEST = Path("served/digits_best")

# What a server would run. It needs the artifact, but neither this code nor Keras.
SERVE = """
import sys
import numpy as np, tensorflow as tf
artifact = tf.saved_model.load(sys.argv[1])
with np.load(sys.argv[2]) as data:
    images, labels = data["images"], data["labels"]
predicted = artifact.serve(images).numpy().argmax(axis=1)
shades = np.array(list(" .:-=+*#%@"))
for image, label, prediction in list(zip(images, labels, predicted))[:3]:
    print(f"\\nserved prediction {prediction}, the digit is a {label}")
    for row in (image[:, :, 0] * 9).round().astype(int):
        print("    " + "".join(2 * shade for shade in shades[row]))
accuracy = (predicted == labels).mean()
print(f"\\naccuracy on {len(images)} validation images: {accuracy:.1%}")
"""


def digits() -> tuple[Any, Any, Any, Any]:
    """Return 1,797 real images of 8 × 8 pixels, split for training and testing."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8, 1).astype("float32")
    return tuple(train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels))


def network() -> keras.Model:
    """Return a small convolutional classifier."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def table(directory: ExportDirectory) -> str:
    """Return the versions in a base directory as text, with one version per line."""
    lines = [f"{'version':>7} {'epoch':>5} {'step':>5} {'val_accuracy':>12} {'waited':>7}  reason"]
    for version in directory.versions():
        record = directory.record(version)
        lines.append(
            f"{version:>7} {record.epoch + 1:>5} {record.step:>5} "
            f"{record.metrics['val_accuracy']:>12.4f} {record.stall_seconds * 1000:>4.0f} ms"
            f"  {record.reason}"
        )
    return "\n".join(lines)


def main() -> None:
    """Train, show what was exported, and serve it from another process."""
    train_images, test_images, train_labels, test_labels = digits()
    network().fit(
        train_images,
        train_labels,
        validation_data=(test_images, test_labels),
        epochs=10,
        batch_size=32,
        verbose=2,
        callbacks=[
            ExportEveryN(EVERY_OTHER, n=2, keep=KeepLatest(3), verbose=1),
            ExportOnImprove(BEST, monitor="val_accuracy", keep=3, verbose=1),
        ],
    )
    for base_dir in (EVERY_OTHER, BEST):
        print(f"\n{base_dir}\n{table(ExportDirectory(base_dir))}")

    best = ExportDirectory(BEST).best("val_accuracy", "max")
    assert best is not None
    print(f"\nServing {best.path}, the best version, from another process:", flush=True)
    np.savez("served/test_images.npz", images=test_images, labels=test_labels)
    command = [sys.executable, "-c", SERVE, str(best.path), "served/test_images.npz"]
    served = subprocess.run(command, capture_output=True, text=True, check=False)
    print(served.stdout if served.returncode == 0 else served.stderr)
    if served.returncode:
        sys.exit("The other process failed.")
    print("See the exports in TensorBoard with: tensorboard --logdir logs")


if __name__ == "__main__":
    main()
