"""Which endpoints are compared on a sample, and what they compute live."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.gates import SAMPLE, exporter
from support.models import FEATURES, assert_equal_state, classifier, data, state

from keras_export_callbacks import (
    ExportArchive,
    ExportDirectory,
    ExportError,
    ExportEveryN,
    standard_endpoints,
)
from keras_export_callbacks.archive.export_archive import registration_of
from keras_export_callbacks.archive.graph.plan import Planner
from keras_export_callbacks.archive.parity import compare
from keras_export_callbacks.archive.parity import probe as probing
from keras_export_callbacks.archive.parity.probe import Probe
from keras_export_callbacks.archive.parity.rounding import tolerance_of


def test_nothing_is_called_layer_by_layer_while_nothing_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = ExportArchive()
    model = classifier()
    standard_endpoints(archive, model)
    probe = probe_of(archive)
    model.fit(*data(), verbose=0)
    monkeypatch.setattr(probing._Call, "live", None)  # It would fail.
    assert len(probe.expect()) == 2


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
        exporter(noisy)._pipeline.prepare()


class Noise(keras.layers.Layer):
    """Draws numbers whether or not it is being trained."""

    def call(self, inputs: Any) -> Any:
        return inputs + tf.random.normal(tf.shape(inputs))


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


def probe_of(archive: ExportArchive) -> Probe:
    return Probe(Planner(registration_of(archive)).plan().graph, SAMPLE)


@pytest.mark.parametrize("name", ["sliced", "drawn"])
def test_what_is_no_inference_is_never_called(name: str) -> None:
    module = Counter()
    with pytest.raises(ExportError, match="changes variables or draws random numbers"):
        probe_of(archive_of(module, name))
    assert module.count.numpy().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["drawn_by_seed", "printing", "ending_in_zeros", "wrapped"])
def test_what_is_inference_is_compared(name: str) -> None:
    archive = archive_of(Counter(), name)
    expected = probe_of(archive).expect()
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
    expected = probe_of(archive).expect()
    archive.write_out("artifact", verbose=False)
    assert compare.check(Path("artifact"), expected).differences["printing/output_0"] == 0.0
