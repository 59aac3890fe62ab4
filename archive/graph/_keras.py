"""Calls to private Keras API: the specs of the batches that `fit` feeds a model.

They work with Keras 3.8 and 3.15. `tests/test_private_calls.py` fails if Keras
changes one of them.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf

from .._tensorflow import concrete_functions


def fed_inputs(model: keras.Model) -> Any:
    """Return the specs of the inputs that `fit` calls a model with, or None if unknown.

    A subclassed model records the shapes that it is called with, but not the dtypes.
    `model.train_function` is public, but the traced function inside it is not.

    Returns:
        `tf.TensorSpec`s, nested like the inputs.
    """
    function = getattr(model, "train_function", None)
    if not inspect.isfunction(function) or type(model).train_step is not keras.Model.train_step:
        return None  # A `train_step` of the user may call the model with something else.
    step = inspect.getclosurevars(function).nonlocals.get("multi_step_on_iterator")
    if not isinstance(step, tf.types.experimental.PolymorphicFunction):
        return None  # The step runs eagerly, without a trace.
    batches = [trace.structured_input_signature[0][0] for trace in concrete_functions(step)]
    fed = [
        keras.utils.unpack_x_y_sample_weight(batch._element_spec)[0]
        for batch in batches
        if hasattr(batch, "_element_spec")  # A distributed dataset has no spec.
    ]
    dtypes = {tuple(spec.dtype for spec in tf.nest.flatten(inputs)) for inputs in fed}
    return fed[-1] if len(dtypes) == 1 else None  # With several dtypes, the right one is unknown.
