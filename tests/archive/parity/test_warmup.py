"""The sample becomes the warm-up requests of a version."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.models import FEATURES, classifier, data

from keras_export_callbacks import (
    ExportArchive,
    ExportDirectory,
    Exporter,
    standard_endpoints,
)
from keras_export_callbacks.archive.parity import compare
from keras_export_callbacks.archive.parity.warmup import WARMUP

SAMPLE = data(rows=5, seed=9)[0]


def exporter(model: Any, **options: Any) -> Exporter:
    return Exporter("base", model, log_dir=None, **{"sample_inputs": SAMPLE} | options)


def own(archive: ExportArchive, model: Any) -> None:
    """Endpoints of several inputs, nested outputs, numbers, text, and one that counts calls."""
    standard_endpoints(archive, model)
    words = tf.lookup.StaticVocabularyTable(
        tf.lookup.KeyValueTensorInitializer(["0", "1"], tf.constant([5, 6], tf.int64)),
        num_oov_buckets=1,
    )
    archive.track(words)
    count = tf.Variable(0)

    def nested(x: Any) -> Any:
        return {"z": model(x), "a": [tf.argmax(model(x), -1), {"b": x > 0}]}

    def counted(x: Any) -> Any:
        count.assign_add(1)
        return model(x) + tf.cast(count, tf.float32)

    def text(x: Any) -> Any:
        word = tf.strings.as_string(tf.argmax(model(x), -1))
        return {"text": word, "id": words.lookup(word)}

    inner = tf.function(lambda x: model(x, training=False))
    signature = [tf.TensorSpec((None, FEATURES), tf.float32, "x")]
    archive.add_endpoint("outer", lambda x: inner(x) * 2, signature)
    archive.add_endpoint("nested", nested, signature)
    archive.add_endpoint("counted", counted, signature)
    archive.add_endpoint("text", text, signature)
    archive.add_endpoint("other", lambda y: -y, [tf.TensorSpec((None, 1, 1), tf.float32, "y")])


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
