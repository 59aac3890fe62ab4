"""A model's own call as the function of an endpoint.

The engine knows that a `ModelCall` runs nothing but the model. It could not know
that of a function that a user wrote around the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from ..errors import error_like


@dataclass(frozen=True, eq=False)
class ModelCall:
    """Calls a model in training or inference mode.

    Attributes:
        model: The model to call.
        training: The `training` argument of the call.
        is_guess: Whether the dtype in the signature is a guess. If so, an error of the
            call mentions it.
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
                f"{self.model.input_dtype} was assumed. If this is wrong, pass `sample_inputs`: a "
                "batch, as `fit` gets it. Or register endpoints with an `input_signature` of your "
                "own, such as "
                "`endpoints=lambda archive, model: archive.add_endpoint('serve', model, "
                f"[{specs or '…'}])`."
            ) from error
