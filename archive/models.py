"""What counts as a model: one of Keras 3."""

from __future__ import annotations

import keras

from .errors import ExportTypeError


def check_model(model: object, label: str = "") -> None:
    """Raise unless `model` is a Keras model; `label` goes before it in the error.

    Raises:
        ExportTypeError: it is none, or one of Keras 2.
    """
    if isinstance(model, keras.Model):
        return
    received = f"Received {label}{model!r} of type {type(model)}"
    if is_of_keras_2(model):
        raise ExportTypeError(f"{received}, which is of Keras 2. {KERAS_3}")
    raise ExportTypeError(f"{received}. Expected a `keras.Model`.")


def is_of_keras_2(item: object) -> bool:
    """Whether something was made by the package `tf_keras`, also a subclass of it."""
    return any(kind.__module__.partition(".")[0] == "tf_keras" for kind in type(item).__mro__)


KERAS_3 = (
    "Expected Keras 3: build and train the model with `import keras` instead of `tf_keras`. If it "
    "comes from `tf.keras`, unset the environment variable TF_USE_LEGACY_KERAS."
)
