"""The choice of the backend that Keras runs on. No other module asks which it is."""

from __future__ import annotations

import keras

from ..errors import BackendError
from .interface import Backend


def current_backend() -> Backend:
    """The backend that Keras runs on.

    Raises:
        BackendError: If the engine does not support this backend.
    """
    name = keras.backend.backend()
    if name != "tensorflow":
        raise BackendError(
            f"Keras runs on the {name!r} backend. Expected 'tensorflow'. Set the environment "
            "variable KERAS_BACKEND=tensorflow before you import keras."
        )
    from . import tensorflow

    return tensorflow
