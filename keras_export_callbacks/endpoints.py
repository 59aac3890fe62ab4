"""The endpoints that are exported by default."""

from __future__ import annotations

import keras

from .archive.export_archive import ExportArchive
from .archive.graph.model_call import ModelCall
from .archive.graph.signatures import guesses_dtypes, model_signature

OPTIMIZER_VARIABLES = "optimizer_variables"


def standard_endpoints(archive: ExportArchive, model: keras.Model) -> None:
    """Register an inference endpoint, a training endpoint, and the optimizer's variables.

    This function is the default of every `endpoints` argument. A function of your own
    can call it and then add more endpoints. It registers:

    - ``serve``: ``model(inputs, training=False)``. The first endpoint of an archive is
      also its `serving_default`.
    - ``call_training``: ``model(inputs, training=True)``. Dropout is active, and batch
      normalization uses the statistics of the batch. A call on a loaded artifact
      changes the artifact's moving statistics and seeds, as training would.
    - ``optimizer_variables``: a collection of the optimizer's variables, in the order of
      `model.optimizer.variables`. A model that is not compiled has no such collection.

    Args:
        archive: `ExportArchive`. The archive to register the endpoints on.
        model: Keras model. The model to export. It must be built.

    Raises:
        ExportError: If the model is not built, or if its input shapes are not known.

    Examples:
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
