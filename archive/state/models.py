"""Checks whether an object is a model, whether it can be called, and whether it is built."""

from __future__ import annotations

from typing import Any

import keras

from ..errors import ExportTypeError, ExportValueError


def check_model(model: object, label: str = "") -> None:
    """Raise an error unless `model` is a Keras 3 model.

    Args:
        model: The object to check.
        label: Text to put before the object in the error message.

    Raises:
        ExportTypeError: If `model` is not a Keras 3 model.
    """
    if isinstance(model, keras.Model):
        return
    received = f"Received {label}{model!r} of type {type(model)}"
    if is_of_keras_2(model):
        raise ExportTypeError(f"{received}, which is of Keras 2. {KERAS_3}")
    raise ExportTypeError(f"{received}. Expected a `keras.Model`.")


def check_optimizer(optimizer: object) -> None:
    """Raise an error unless `optimizer` is an optimizer of Keras 3.

    Raises:
        ExportTypeError: If `optimizer` is anything else.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ExportTypeError(
            f"Received optimizer={optimizer!r} of type {type(optimizer)}. Expected the Keras "
            "optimizer that your training loop uses, such as one of `keras.optimizers.Adam()`."
        )


def is_of_keras_2(item: object) -> bool:
    """Return whether `item` is of a class of the package `tf_keras`, or of a subclass."""
    return any(kind.__module__.partition(".")[0] == "tf_keras" for kind in type(item).__mro__)


def has_call(model: keras.Model) -> bool:
    """Return whether a model has a `call`. A model with its own `train_step` may have none."""
    return type(model).call is not keras.Model.call


def has_declared_inputs(item: Any) -> bool:
    """Return whether `item` is a model that was built from its inputs, not a subclassed model."""
    if isinstance(item, keras.Sequential):
        return True
    try:
        return isinstance(item, keras.Model) and bool(item.inputs)
    except (AttributeError, ValueError):
        return False


def check_call(model: keras.Model) -> None:
    """Raise an error unless a model can be called.

    The message shows the line that exports a part of the model instead.

    Raises:
        ExportValueError: If the model has no `call`.
    """
    if has_call(model):
        return
    parts = {name: item for name, item in vars(model).items() if isinstance(item, keras.Layer)}
    models = [name for name, item in parts.items() if isinstance(item, keras.Model)]
    part = next(iter([*models, *parts]), "part")
    raise ExportValueError(
        f"Model '{model.name}' has no `call`, so it cannot be exported as a whole. Export the part "
        "that you want to serve: "
        f"`endpoints=lambda archive, model: standard_endpoints(archive, model.{part})`."
    )


def is_built(layer: keras.Layer) -> bool:
    """Return whether a layer has its variables.

    Keras never marks a model without a `call` as built, so this checks its layers.
    """
    if isinstance(layer, keras.Model) and not has_call(layer):
        return bool(layer.layers) and all(map(is_built, layer.layers))
    return bool(layer.built)


KERAS_3 = (
    "Expected Keras 3: build and train the model with `import keras` instead of `tf_keras`. If it "
    "comes from `tf.keras`, unset the environment variable TF_USE_LEGACY_KERAS."
)
