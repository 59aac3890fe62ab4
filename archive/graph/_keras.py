"""What the engine needs of Keras and has no public way: the batches that `fit` feeds a model.

Tried with Keras 3.8 and 3.15; `tests/test_private_calls.py` fails when it moves.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf

from .._tensorflow import concrete_functions


def fed_inputs(model: keras.Model) -> Any:
    """The specs of the inputs that `fit` calls a model with, nested as they are; None if unknown.

    A subclassed model records the shapes that it is called with, and not the dtypes.
    `model.train_function` is public, and the traced function inside it is not.
    """
    function = getattr(model, "train_function", None)
    if not inspect.isfunction(function) or type(model).train_step is not keras.Model.train_step:
        return None  # A step of the user's own may call the model with something else.
    step = inspect.getclosurevars(function).nonlocals.get("multi_step_on_iterator")
    if not isinstance(step, tf.types.experimental.PolymorphicFunction):
        return None  # It runs eagerly.
    batches = [trace.structured_input_signature[0][0] for trace in concrete_functions(step)]
    fed = [
        keras.utils.unpack_x_y_sample_weight(batch._element_spec)[0]
        for batch in batches
        if hasattr(batch, "_element_spec")  # A distributed data set tells nothing.
    ]
    dtypes = {tuple(spec.dtype for spec in tf.nest.flatten(inputs)) for inputs in fed}
    return fed[-1] if len(dtypes) == 1 else None  # Of several it is not known which is meant.
