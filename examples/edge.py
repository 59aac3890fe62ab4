"""Put a quantized LiteRT model and the names of the classes into the best version, and run it.

Run it with ``python examples/edge.py`` after ``pip install
"keras-export-callbacks[examples]"``; it takes about half a minute. LiteRT runs the
file if ``ai-edge-litert`` is installed, or else the interpreter in TensorFlow.
"""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from keras_export_callbacks import ExportOnImprove
from keras_export_callbacks.formats import litert

CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main() -> None:
    keras.utils.set_random_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype("float32").reshape(-1, 8, 8, 1)
    train, test = (images[:1400], labels[:1400]), (images[1400:], labels[1400:])

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    best = ExportOnImprove(
        "served/edge",
        monitor="val_accuracy",
        baseline=0.0,  # Export again, whatever an earlier run of this example left there.
        sample_inputs=images[:8],  # Each version is compared with the model, the file as well.
        extra_files={
            "digits.tflite": litert(quantize="int8", representative_inputs=images[:200]),
            "labels.txt": "\n".join(CLASSES).encode(),
        },
        keep=1,
    )
    model.fit(*train, validation_data=test, epochs=5, verbose=2, callbacks=[best])

    record = best.last_export
    assert record is not None
    assert record.parity is not None
    extra = record.path / "assets.extra"
    sizes = {name: info.size for name, info in record.extra_files.items()}
    print(f"\nversion {record.version} has {sizes} (bytes)")
    print(f"digits.tflite differs by up to {record.parity.files['digits.tflite']:.3g}")

    artifact = tf.saved_model.load(str(record.path))
    full = accuracy(artifact.serve(test[0]).numpy(), test[1])
    quantized = accuracy(run(extra / "digits.tflite", test[0]), test[1])
    print(f"accuracy of the version: {full:.1%}, of digits.tflite: {quantized:.1%}")

    names = (extra / "labels.txt").read_text().splitlines()
    first = names[int(np.argmax(run(extra / "digits.tflite", test[0][:1])))]
    print(f"the first test image is a {first}, and should be a {CLASSES[test[1][0]]}")


def run(path: Path, images: Any) -> Any:
    """Run a file in LiteRT, as a device does."""
    if find_spec("ai_edge_litert") is not None:
        from ai_edge_litert.interpreter import Interpreter
    else:
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
        Interpreter = tf.lite.Interpreter  # noqa: N806
    runner = Interpreter(str(path)).get_signature_runner("serve")
    return runner(image=images)["output_0"]


def accuracy(logits: Any, labels: Any) -> float:
    return float(np.mean(np.argmax(logits, axis=-1) == labels))


if __name__ == "__main__":
    main()
