"""What counts as a model, whether it can be called, and whether it is built."""

from __future__ import annotations

from typing import Any

import keras

from ..errors import ExportTypeError, ExportValueError


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


def has_call(model: keras.Model) -> bool:
    """Whether a model can be called; one with a `train_step` of its own need not be."""
    return type(model).call is not keras.Model.call


def has_declared_inputs(item: Any) -> bool:
    """Whether something is a model that was built from its inputs, and not subclassed."""
    if isinstance(item, keras.Sequential):
        return True
    try:
        return isinstance(item, keras.Model) and bool(item.inputs)
    except (AttributeError, ValueError):
        return False


def check_call(model: keras.Model) -> None:
    """Raise unless a model can be called, with the line that exports a part of it.

    Raises:
        ExportValueError: it has no `call`.
    """
    if has_call(model):
        return
    parts = {name: item for name, item in vars(model).items() if isinstance(item, keras.Layer)}
    models = [name for name, item in parts.items() if isinstance(item, keras.Model)]
    part = next(iter([*models, *parts]), "part")
    raise ExportValueError(
        f"Model '{model.name}' has no `call`, so it cannot be exported as a whole. Export the part "
        "of it that is to be served: "
        f"`endpoints=lambda archive, model: standard_endpoints(archive, model.{part})`."
    )


def is_built(layer: keras.Layer) -> bool:
    """Whether a layer has its variables. Keras never says so of a model without a `call`."""
    if isinstance(layer, keras.Model) and not has_call(layer):
        return bool(layer.layers) and all(map(is_built, layer.layers))
    return bool(layer.built)


KERAS_3 = (
    "Expected Keras 3: build and train the model with `import keras` instead of `tf_keras`. If it "
    "comes from `tf.keras`, unset the environment variable TF_USE_LEGACY_KERAS."
)
