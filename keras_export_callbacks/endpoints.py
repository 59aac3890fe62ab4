"""What is exported unless you say otherwise."""

from __future__ import annotations

import keras

from .archive.export_archive import ExportArchive
from .archive.graph.model_call import ModelCall
from .archive.graph.signatures import guesses_dtypes, model_signature

OPTIMIZER_VARIABLES = "optimizer_variables"


def standard_endpoints(archive: ExportArchive, model: keras.Model) -> None:
    """Register inference, the training-mode forward pass, and the optimizer's variables.

    The default of every `endpoints` argument, and a good first line of one of
    your own:

    - ``serve`` is ``model(inputs, training=False)``, also the `serving_default`.
    - ``call_training`` is ``model(inputs, training=True)``: dropout is active and
      batch normalization uses the batch. Calling it on a loaded artifact moves
      that artifact's moving statistics and seeds, as training would.
    - the collection ``optimizer_variables`` holds the optimizer's state, in the
      order of `model.optimizer.variables`; only if the model is compiled.

    Args:
        archive: what to register them on.
        model: a built model.

    Raises:
        ExportError: the model is not built, or does not tell its input shapes.

    Example:

    >>> import keras, tensorflow as tf
    >>> from keras_export_callbacks import ExportArchive, standard_endpoints
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> def with_labels(archive, model):
    ...     standard_endpoints(archive, model)
    ...     archive.add_endpoint(
    ...         "label", lambda x: tf.argmax(model(x), axis=-1), [tf.TensorSpec((None, 3))]
    ...     )
    >>> archive = ExportArchive()
    >>> with_labels(archive, model)
    """
    signature = model_signature(model)
    archive.track(model)
    is_guess = guesses_dtypes(model)
    archive.add_endpoint("serve", ModelCall(model, False, is_guess), signature)
    archive.add_endpoint("call_training", ModelCall(model, True, is_guess), signature)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        archive.add_variable_collection(OPTIMIZER_VARIABLES, optimizer.variables)
