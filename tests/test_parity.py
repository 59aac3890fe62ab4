"""Before it is published, an artifact computes what the model computes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import FEATURES, assert_equal_state, classifier, data, state

from keras_export_callbacks import (
    ExportArchive,
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    standard_endpoints,
)
from keras_export_callbacks.archive.parity import c_library, compare
from keras_export_callbacks.archive.parity import probe as probing
from keras_export_callbacks.archive.parity.rounding import tolerance_of
from keras_export_callbacks.archive.parity.warmup import WARMUP

SAMPLE, _ = data(rows=5, seed=9)


class Scaled(keras.layers.Layer):
    """Reads an attribute that nothing tells to be traced again."""

    factor = 1.0

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor


def scaled() -> tuple[Any, Scaled]:
    layer = Scaled()
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, layer(keras.layers.Dense(2)(inputs)))
    return model, layer


def exporter(model: Any, **options: Any) -> Exporter:
    return Exporter("base", model, log_dir=None, **{"sample_inputs": SAMPLE} | options)


def test_the_manifest_tells_how_equal_they_are_and_what_it_cost() -> None:
    model = classifier()
    callback = ExportEveryN("base", log_dir=None, sample_inputs=SAMPLE)
    model.fit(*data(), epochs=2, verbose=0, callbacks=[callback])
    for record in ExportDirectory("base").records():
        assert record.parity is not None
        # In training mode there would be dropout: only inference is compared.
        assert record.parity.differences == {
            "serve/output_0": 0.0,
            "serving_default/output_0": 0.0,
        }
        assert 0 < record.parity.live_seconds < record.stall_seconds
        assert 0 < record.parity.check_seconds < record.write_seconds


def test_without_a_sample_nothing_is_compared() -> None:
    with exporter(classifier(), sample_inputs=None) as without:
        assert without.export().result().parity is None


def test_a_stale_trace_is_not_published() -> None:
    model, layer = scaled()
    with exporter(model, on_error="warn") as gated:
        gated.export().result()
        layer.factor = 1.5
        failed = gated.export().exception()
        with pytest.warns(UserWarning, match="Output 'output_0' of signature '.*'"):
            gated.wait()
        layer.factor = 1.0
        gated.export().result()
    assert isinstance(failed, ExportError)
    assert "cannot be published: it differs by up to" in str(failed)
    assert ExportDirectory("base").versions() == [1, 2]
    assert sorted(path.name for path in Path("base").iterdir()) == ["1", "2"]


def set_slope(model: Any) -> None:
    model.layers[1].negative_slope = 0.1


def set_activation(model: Any) -> None:
    model.layers[0].activation = keras.activations.tanh


@pytest.mark.parametrize("change", [set_slope, set_activation])
def test_so_it_is_with_an_attribute_of_keras_own_layers(change: Any) -> None:
    """They are compared as traced only for as long as nobody sets an attribute."""
    stack = [keras.layers.Dense(4), keras.layers.LeakyReLU(0.5), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((FEATURES,)), *stack])
    with exporter(model, on_error="warn") as gated:
        gated.export().result()
        gated.export().result()
        change(model)
        failed = gated.export().exception()
        with pytest.warns(UserWarning, match="differs by up to"):
            gated.wait()
    assert isinstance(failed, ExportError)
    assert ExportDirectory("base").versions() == [1, 2]


def test_nothing_is_called_layer_by_layer_while_nothing_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = ExportArchive()
    model = classifier()
    standard_endpoints(archive, model)
    probe = archive.probe(SAMPLE)
    model.fit(*data(), verbose=0)
    monkeypatch.setattr(probing._Call, "live", None)  # It would fail.
    assert len(probe.expect()) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_published(value: float) -> None:
    model, _ = scaled()
    model.layers[1].bias.assign([0.0, value])
    with exporter(model) as gated:
        failed = gated.export().exception()
        with pytest.raises(ExportError, match=r"'output_0' of .*the model itself computes"):
            gated.wait()
    assert isinstance(failed, ExportError)
    assert not ExportDirectory("base").versions()


def test_small_values_are_not_hidden_by_large_ones() -> None:
    model, layer = scaled()
    layer.factor = np.array([1e6, 1.0], "float32")
    model.layers[1].set_weights([np.zeros((FEATURES, 2)), np.ones(2)])
    with exporter(model, on_error="warn") as gated:
        gated.export().result()
        layer.factor = np.array([1e6, 50.0], "float32")
        failed = gated.export().exception()
        with pytest.warns(UserWarning, match="differs by up to 49 from 50"):
            gated.wait()
    assert isinstance(failed, ExportError)


class Components(keras.Model):
    """Returns what consists of several tensors."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self._make = make

    def call(self, inputs: Any) -> Any:
        return self._make(inputs)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (tf.RaggedTensor.from_tensor, "returns a RaggedTensor as 'output_0'.* dense tensors"),
        (tf.sparse.from_dense, "returns a SparseTensor as 'output_0'.* dense tensors"),
        (lambda x: x + keras.random.normal((1,)), "draws? random numbers.*disturb training"),
    ],
)
def test_what_cannot_be_compared_is_told(make: Any, told: str) -> None:
    model = Components(make)
    model(SAMPLE)
    with exporter(model) as gated, pytest.raises(ExportError, match=told):
        gated.export()
    assert not ExportDirectory("base").versions()


SLOW = """
import os, subprocess, sys
import keras, tensorflow as tf
from keras_export_callbacks import Exporter

class Endless(keras.layers.Layer):
    def call(self, inputs):
        # For ever in the other process, which finds a file there.
        go_on = lambda x: tf.reduce_any(tf.io.matching_files(tf.constant(sys.argv[1])) != "")
        return tf.while_loop(go_on, lambda x: (x + 1.0,), (inputs,))[0]

inputs = keras.Input((2,))
model = keras.Model(inputs, Endless()(inputs))
exporter = Exporter("base", model, log_dir=None, sample_inputs=tf.ones((1, 2)))
exporter.prepare()
state = exporter.state()
open(sys.argv[1], "w").close()
exporter.request(
    reason="", step=None, epoch=None, metrics={}, validated=state
).result()
"""


@pytest.mark.slow
def test_a_comparison_ends_with_the_process_that_asked_for_it() -> None:
    command = [sys.executable, "-c", SLOW, str(Path("there").absolute())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        while not (found := comparisons(process.pid)):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    for child in found:
        while Path(f"/proc/{child}").exists():
            time.sleep(0.05)
    assert not ExportDirectory("base").versions()


def comparisons(parent: int) -> list[int]:
    """The processes that run an artifact for `parent`, and have loaded TensorFlow."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"\nPPid:\t{parent}\n" in status.read_text():
                loaded = (status.parent / "maps").read_text()
                found += [int(status.parent.name)] * ("libtensorflow_cc" in loaded)
    return found


def test_training_is_the_same_with_and_without_it() -> None:
    states = []
    for sample in (None, SAMPLE):
        model = classifier()
        callback = ExportEveryN(f"base{sample is None}", log_dir=None, sample_inputs=sample)
        model.fit(*data(), epochs=2, verbose=0, callbacks=[callback])
        states.append(state(model))
    assert_equal_state(*states)


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (np.ones((2, FEATURES + 1), "float32"), r"shape \(None, 4\), received \(2, 5\)"),
        ([SAMPLE, SAMPLE], r"received \['float32\(5, 4\)', 'float32\(5, 4\)'\]"),
        ("text", r"Signature '.*' expects"),
    ],
)
def test_a_sample_that_does_not_fit_is_told_before_training(sample: Any, told: str) -> None:
    callback = ExportEveryN("base", log_dir=None, sample_inputs=sample)
    with pytest.raises(ExportError, match=f"can be compared on the sample_inputs.*{told}"):
        classifier().fit(*data(), verbose=0, callbacks=[callback])
    assert not ExportDirectory("base").versions()


def test_a_model_that_changes_its_state_when_it_is_called_is_told() -> None:
    noisy = keras.Sequential([keras.Input((FEATURES,)), Noise()])
    with pytest.raises(ExportError, match="'serve' changes variables or draws random numbers"):
        exporter(noisy).prepare()


class Noise(keras.layers.Layer):
    """Draws numbers whether or not it is being trained."""

    def call(self, inputs: Any) -> Any:
        return inputs + tf.random.normal(tf.shape(inputs))


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


class Counter(tf.Module):  # type: ignore[misc]
    """Functions that are no inference, or look like none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = tf.Variable([0.0, 0.0])

    def sliced(self, inputs: Any) -> Any:
        self.count[0].assign(self.count[0] + 1.0)
        return inputs

    def drawn(self, inputs: Any) -> Any:
        return inputs + tf.random.uniform(tf.shape(inputs))

    def drawn_by_seed(self, inputs: Any) -> Any:
        return inputs + tf.random.stateless_uniform(tf.shape(inputs), (1, 2))

    def printing(self, inputs: Any) -> Any:
        tf.print("printed", output_stream=sys.stdout)
        return inputs + self.count[0]

    def ending_in_zeros(self, inputs: Any) -> Any:
        return tf.strings.join([tf.strings.as_string(inputs), "\0\0"])

    def wrapped(self, inputs: Any) -> Any:
        half = tf.function(lambda x: tf.cast(tf.cast(x, tf.float16) / 3.0, tf.float32))
        return half(inputs)


def archive_of(module: Counter, *names: str) -> ExportArchive:
    archive = ExportArchive()
    archive.track(module)
    for name in names:
        spec = tf.TensorSpec((None, FEATURES), tf.float32, "inputs")
        archive.add_endpoint(name, getattr(module, name), input_signature=[spec])
    return archive


@pytest.mark.parametrize("name", ["sliced", "drawn"])
def test_what_is_no_inference_is_never_called(name: str) -> None:
    module = Counter()
    with pytest.raises(ExportError, match="changes variables or draws random numbers"):
        archive_of(module, name).probe(SAMPLE)
    assert module.count.numpy().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["drawn_by_seed", "printing", "ending_in_zeros", "wrapped"])
def test_what_is_inference_is_compared(name: str) -> None:
    archive = archive_of(Counter(), name)
    expected = archive.probe(SAMPLE).expect()
    archive.write_out("artifact", verbose=False)
    differences = compare.check(Path("artifact"), expected).differences
    assert set(differences.values()) == {0.0}
    # Whatever function it is in, what computes coarsely may round coarsely.
    assert (tolerance_of(expected[0].resolution) > 0.01) == (name == "wrapped")


def test_what_no_server_returns_leaves_the_others_to_be_compared() -> None:
    archive = archive_of(Counter(), "printing")
    archive.add_endpoint(
        "ragged",
        lambda x: tf.RaggedTensor.from_tensor(x),
        input_signature=[tf.TensorSpec((None, FEATURES), tf.float32, "inputs")],
    )
    expected = archive.probe(SAMPLE).expect()
    archive.write_out("artifact", verbose=False)
    assert compare.check(Path("artifact"), expected).differences["printing/output_0"] == 0.0


def test_an_artifact_that_never_answers_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(c_library, "LIMIT", 0)
    with exporter(classifier(), on_error="warn") as gated:
        failed = gated.export().exception()
        with pytest.warns(UserWarning, match="without an end"):
            gated.wait()
    assert isinstance(failed, ExportError)
    assert not ExportDirectory("base").versions()


def test_every_inference_endpoint_that_takes_the_sample_is_compared() -> None:
    with exporter(classifier(), endpoints=own) as gated:
        parity = gated.export().result().parity
    assert parity is not None
    assert set(parity.differences) == {
        *("serve/output_0", "serving_default/output_0"),
        *("nested/z", "nested/a_0", "nested/a_1_b"),
        *("text/text", "text/id", "outer/output_0"),
    }


def test_inputs_go_by_name() -> None:
    """Two inputs of equal shape, named against their order, in an asymmetric model."""
    first, second = keras.Input((2,), name="z"), keras.Input((2,), name="a")
    model = keras.Model({"z": first, "a": second}, keras.ops.subtract(first, 2 * second))
    sample = {"a": np.eye(2, dtype="float32"), "z": np.full((2, 2), 7, "float32")}
    with exporter(model, sample_inputs=sample) as gated:
        record = gated.export().result()
    assert record.parity is not None
    assert set(record.parity.differences.values()) == {0.0}


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


def test_a_model_that_is_not_finite_yet_is_trained_and_told_when_it_is_exported() -> None:
    model = classifier()
    weights = model.layers[0].kernel
    weights.assign(weights.value * np.inf)
    callback = ExportEveryN("base", log_dir=None, sample_inputs=SAMPLE, on_error="warn")
    with pytest.warns(UserWarning, match="the model itself computes a value that is not finite"):
        model.fit(*data(), epochs=1, verbose=0, callbacks=[callback])
    assert model.optimizer.iterations == 1
    assert not ExportDirectory("base").versions()
