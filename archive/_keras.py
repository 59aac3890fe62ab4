"""What the engine needs of Keras and has no public way: the batches that `fit` feeds a model.

Tried with Keras 3.8 and 3.15; `tests/test_private_calls.py` fails when it moves.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf

from ._tensorflow import concrete_functions


def fed_inputs(model: keras.Model) -> Any:
    """The specs of the inputs in the batches of `fit`, nested as they are; None if unknown.

    A subclassed model records the shapes that it is called with, and not the dtypes.
    `model.train_function` is public, and the traced function inside it is not.
    """
    function = getattr(model, "train_function", None)
    if not inspect.isfunction(function):
        return None
    step = inspect.getclosurevars(function).nonlocals.get("multi_step_on_iterator")
    if not isinstance(step, tf.types.experimental.PolymorphicFunction):
        return None  # It runs eagerly.
    batches = [trace.structured_input_signature[0][0] for trace in concrete_functions(step)]
    if not batches or not hasattr(batches[-1], "_element_spec"):
        return None  # Of a distributed data set, say.
    inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batches[-1]._element_spec)
    return inputs
