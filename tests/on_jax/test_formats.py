"""`formats.litert` on JAX."""

from __future__ import annotations

from support.models import classifier, data

from keras_export_callbacks import Exporter
from keras_export_callbacks.formats import litert


def test_a_version_has_a_file_that_computes_what_the_model_does() -> None:
    files = {"model.tflite": litert()}
    x, _ = data(3)
    with Exporter("base", classifier(), extra_files=files, sample_inputs=x, log_dir=None) as e:
        e.export()
    (record,) = e.exports
    assert record.parity is not None
    assert record.parity.files["model.tflite"] < 1e-5
