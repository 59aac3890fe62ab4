"""The sample becomes the warm-up requests of a version."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from support.gates import SAMPLE, exporter, own
from support.models import classifier

from keras_export_callbacks import (
    ExportDirectory,
)
from keras_export_callbacks.archive.parity import compare
from keras_export_callbacks.archive.parity.warmup import WARMUP


def test_the_sample_is_the_warm_up_of_every_inference_signature() -> None:
    """TensorFlow Serving sends these when it loads a version, and refuses it if one fails."""
    from tensorflow_serving.apis import prediction_log_pb2

    with exporter(classifier(), endpoints=own) as gated:
        record = gated.export().result()
    requests = {}
    for entry in tf.data.TFRecordDataset(str(record.path / WARMUP)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(entry)
        request = log.predict_log.request
        requests[request.model_spec.signature_name] = request.inputs
    assert set(requests) == {"serve", "serving_default", "nested", "text", "outer"}
    np.testing.assert_array_equal(tf.make_ndarray(requests["nested"]["x"]), SAMPLE)
    assert record.files[WARMUP].size == (record.path / WARMUP).stat().st_size
    assert ExportDirectory("base").verify(1) == []


def test_without_the_extra_the_sample_is_compared_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "can_write_requests", lambda: False)
    with exporter(classifier()) as gated:
        record = gated.export().result()
    assert record.parity is not None
    assert WARMUP not in record.files
    assert ExportDirectory("base").verify(1) == []
