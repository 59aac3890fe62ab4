"""Warm-up requests, which a model server sends to itself when it loads a version.

TensorFlow Serving replays the `PredictionLog` records in
``assets.extra/tf_serving_warmup_requests``. If a request fails, it refuses the version
(tensorflow.org/tfx/serving/saved_model_warmup). The requests need an optional dependency,
``keras-export-callbacks[serving]``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from ..store.record import WARMUP


def can_write_requests() -> bool:
    """Return whether the package that defines the requests is installed."""
    return importlib.util.find_spec("tensorflow_serving") is not None


def write_requests(directory: Path, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Write one request per call into a SavedModel's directory.

    Args:
        directory: The directory of the SavedModel.
        calls: The name of a signature and its inputs, for each call. The inputs are
            arrays by name.
    """
    from tensorflow_serving.apis import prediction_log_pb2

    path = directory / WARMUP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in calls:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = "model"  # The server ignores this name.
            request.model_spec.signature_name = signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            writer.write(log.SerializeToString(deterministic=True))


def read_requests(directory: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the calls in a SavedModel's directory, in the form that `write_requests` takes."""
    from tensorflow_serving.apis import prediction_log_pb2

    calls = []
    for record in _records(directory / WARMUP):
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        calls.append((request.model_spec.signature_name, inputs))
    return calls


def _records(path: Path) -> Iterator[bytes]:
    yield from tf.data.TFRecordDataset(str(path), buffer_size=2**18).as_numpy_iterator()
