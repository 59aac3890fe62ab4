"""A model's own call as the function of an endpoint.

Naming it, rather than writing a function around it, lets the engine know that
nothing but the model takes part in what it computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from .errors import ExportValueError, error_like


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


@dataclass(frozen=True, eq=False)
class ModelCall:
    """Calls a model in one mode.

    Attributes:
        model: what is called.
        training: the `training` argument.
        is_guess: whether its signature's dtype is a guess, which an error then says.
    """

    model: keras.Model
    training: bool
    is_guess: bool = False

    def __call__(self, *inputs: Any) -> Any:
        try:
            return self.model(*inputs, training=self.training)
        except Exception as error:
            if not self.is_guess:
                raise
            shapes = [tuple(item.shape) for item in inputs if tf.is_tensor(item)]
            specs = ", ".join(f"tf.TensorSpec({shape}, 'int32')" for shape in shapes)
            raise error_like(error)(
                f"{error}\n\nModel '{self.model.name}' does not record the dtype of its inputs, so "
                f"{self.model.input_dtype} was assumed. If it is called with another one, pass "
                "`sample_inputs`, a batch as `fit` gets it, or register endpoints with an "
                "`input_signature` of your own, such as "
                "`endpoints=lambda archive, model: archive.add_endpoint('serve', model, "
                f"[{specs or '…'}])`."
            ) from error
