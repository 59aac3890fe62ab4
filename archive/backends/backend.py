"""The choice of the engine's backend. No other module asks which backend Keras runs on."""

from __future__ import annotations

import keras

from ..errors import BackendError
from .interface import Backend


def current_backend() -> Backend:
    """Return the engine's backend for the backend that Keras runs on.

    Raises:
        BackendError: If the engine does not support this backend.
    """
    name = keras.backend.backend()
    if name == "tensorflow":
        from . import tensorflow

        return tensorflow
    if name == "jax":
        from . import jax

        return jax
    raise BackendError(
        f"Keras runs on the {name!r} backend. Expected 'tensorflow' or 'jax'. Set the environment "
        "variable KERAS_BACKEND to one of these before you import keras."
    )
