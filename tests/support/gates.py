"""Exports that are compared on a sample, and endpoints of many kinds to compare."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_export_callbacks import (
    ExportArchive,
    Exporter,
    standard_endpoints,
)

from .models import FEATURES, data

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
