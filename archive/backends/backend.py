"""Which backend Keras runs on: asked here and nowhere else."""

from __future__ import annotations

import keras

from ..errors import BackendError
from .interface import Backend


def current_backend() -> Backend:
    """The backend that Keras runs on.

    Raises:
        BackendError: it is not one that can be exported.
    """
    name = keras.backend.backend()
    if name == "tensorflow":
        from . import tensorflow

        return tensorflow
    if name == "jax":
        from . import jax

        return jax
    raise BackendError(
        f"Keras runs on the {name!r} backend. Expected 'tensorflow' or 'jax': set the environment "
        "variable KERAS_BACKEND=tensorflow before importing keras."
    )
