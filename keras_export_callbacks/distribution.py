"""Which process of a training on several machines publishes."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from .archive.errors import ExportError


def check_strategy(model: keras.Model) -> None:
    """Raise if a model's variables are where no one process can read them at one moment."""
    if isinstance(_strategy(model), tf.distribute.experimental.ParameterServerStrategy):
        raise ExportError(
            "The model is trained under a ParameterServerStrategy, where workers change variables "
            "at any time, so that there is no moment to export. Export at the end, from a copy of "
            "the model that is made outside the strategy."
        )


def is_publisher(model: keras.Model) -> bool:
    """Whether this process is the one that publishes: the chief, where there are several."""
    return bool(_strategy(model).extended.should_checkpoint)


def _strategy(model: keras.Model) -> Any:
    """The strategy that the model was made under; TensorFlow's default one otherwise."""
    default = getattr(model, "distribute_strategy", tf.distribute.get_strategy())
    for variable in model.variables:
        return getattr(variable.value, "distribute_strategy", default)
    return default
