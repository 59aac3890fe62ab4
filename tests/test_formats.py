"""`formats.litert`: a `.tflite` in each version, run and compared before it appears."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from support.models import classifier, data

from keras_export_callbacks import (
    ExportArchive,
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    standard_endpoints,
)
from keras_export_callbacks.cli import main
from keras_export_callbacks.formats import litert

FILE = "assets.extra/model.tflite"


def export(model: Any = None, **options: Any) -> Any:
    function = options.pop("function", None) or litert()
    files = {"model.tflite": function}
    model = model or classifier()
    with Exporter("base", model, extra_files=files, log_dir=None, **options) as exporter:
        exporter.export()
    return exporter.exports[-1]


def run(record: Any, endpoint: str = "serve", **inputs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(str(record.path / FILE))
    return interpreter.get_signature_runner(endpoint)(**inputs)


def wide() -> Any:
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(256, activation="relu")
    return keras.Sequential([keras.Input((64,)), hidden, keras.layers.Dense(10)])


PIXELS = np.random.default_rng(0).normal(size=(32, 64)).astype("float32")


def test_each_version_of_a_fit_holds_its_own_weights() -> None:
    model, (x, y) = classifier(), data()
    files = {"model.tflite": litert()}
    callback = ExportEveryN("base", extra_files=files, sample_inputs=x[:2], log_dir=None)
    outputs: list[Any] = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: outputs.append(np.asarray(model(x)))
    )
    model.fit(x, y, epochs=2, verbose=0, callbacks=[callback, keep])
    for record, expected in zip(callback.exports, outputs, strict=True):
        found = run(record, inputs=x)["output_0"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert record.parity is not None
        assert 0 <= record.parity.files["model.tflite"] < 1e-5
    assert ExportDirectory("base").verify(2) == []
    shown = CliRunner().invoke(main, ["show", "base"]).output
    assert "compared model.tflite" in shown


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("options", "share", "rounding"),
    [
        ({}, 1.0, 1e-5),
        ({"quantize": "float16"}, 0.55, 0.01),
        ({"quantize": "int8"}, 0.3, 0.2),
        ({"quantize": "int8", "representative_inputs": PIXELS}, 0.3, 0.3),
        ({"quantize": "int8", "representative_inputs": {"inputs": PIXELS}}, 0.3, 0.3),
        ({"quantize": "int8", "max_difference": 0.5}, 0.3, 0.2),
    ],
)
def test_quantization_saves_bytes_and_tells_what_it_costs(
    options: Any, share: float, rounding: float
) -> None:
    model = wide()
    record = export(model, function=litert(**options), sample_inputs=PIXELS[:4])
    assert record.extra_files["model.tflite"].size < share * 4 * model.count_params() + 4000
    found = run(record, inputs=PIXELS[:4])["output_0"]
    difference = np.max(np.abs(found - np.asarray(model(PIXELS[:4]))))
    assert record.parity.files["model.tflite"] == pytest.approx(difference, abs=1e-6)
    assert difference < rounding


@pytest.mark.zoo
def test_what_differs_too_much_is_not_published() -> None:
    function = litert(quantize="int8", max_difference=1e-6)
    with pytest.raises(ExportError, match=r"'model.tflite' cannot be made.*max_difference=1e-06"):
        export(wide(), function=function, sample_inputs=PIXELS[:4])
    assert ExportDirectory("base").versions() == []


@pytest.mark.zoo
def test_another_endpoint() -> None:
    def endpoints(archive: ExportArchive, model: Any) -> None:
        standard_endpoints(archive, model)
        archive.add_endpoint("best", lambda x: tf.argmax(model(x), -1), [tf.TensorSpec((None, 64))])

    model = wide()
    function = litert("best", max_difference=0.5)
    record = export(model, function=function, endpoints=endpoints, sample_inputs=PIXELS[:4])
    found = run(record, "best", x=PIXELS[:4])["output_0"]
    np.testing.assert_array_equal(found, np.argmax(model(PIXELS[:4]), -1))
    assert record.parity.files == {"model.tflite": 0.0}


def test_an_endpoint_that_is_not_there_is_told_before_the_second_batch() -> None:
    callback = ExportEveryN("base", extra_files={"m.tflite": litert("nope")}, log_dir=None)
    batches: list[int] = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: batches.append(1))
    with pytest.raises(ExportError, match=r"no endpoint 'nope'. Expected one of \['call_training'"):
        classifier().fit(*data(), verbose=0, callbacks=[callback, count])
    assert len(batches) <= 1


@pytest.mark.parametrize("sample_inputs", [None, {"call": PIXELS[:2]}])
def test_a_difference_that_cannot_be_measured_is_told(sample_inputs: Any) -> None:
    def endpoints(archive: ExportArchive, model: Any) -> None:
        standard_endpoints(archive, model)
        archive.add_endpoint("call", lambda x: model(x), [tf.TensorSpec((None, 64))])

    function = litert(max_difference=0.5)
    with pytest.raises(ExportError, match=r"max_difference.*Pass .*sample"):
        export(wide(), function=function, endpoints=endpoints, sample_inputs=sample_inputs)
    assert ExportDirectory("base").versions() == []


def test_an_endpoint_that_is_not_there_is_a_failed_export() -> None:
    with pytest.raises(ExportError, match=r"'model.tflite' cannot be made.*Invalid signature key"):
        export(function=litert("classify"))


def test_what_cannot_be_converted_is_told() -> None:
    def endpoints(archive: ExportArchive, model: Any) -> None:
        standard_endpoints(archive, model)
        archive.add_endpoint("lower", tf.strings.lower, [tf.TensorSpec((None,), tf.string)])

    with pytest.raises(
        ExportError, match=r"LiteRT cannot convert endpoint 'lower', because.*StringLower of '"
    ):
        export(function=litert("lower"), endpoints=endpoints)
    assert not Path("base/1").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"quantize": "int4"}, "quantize='int4'. Expected None, 'float16' or 'int8'"),
        ({"representative_inputs": PIXELS}, "Only quantize='int8' uses them"),
        ({"max_difference": -1}, "Expected a number of at least 0"),
        ({"endpoint": 7}, "Expected the name of an endpoint"),
        ({"quantize": "int8", "representative_inputs": PIXELS[:0]}, "at least one row"),
        ({"quantize": "int8", "representative_inputs": {"x": iter(PIXELS)}}, "at least one row"),
    ],
)
def test_refuses_bad_arguments(options: Any, told: str) -> None:
    with pytest.raises(ExportError, match=told):
        litert(**options)


@pytest.mark.zoo
def test_representative_inputs_of_another_form_are_told() -> None:
    function = litert(quantize="int8", representative_inputs={"x": PIXELS})
    with pytest.raises(ExportError, match=r"names \['inputs'\]"):
        export(wide(), function=function)
