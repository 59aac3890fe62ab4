"""Before it is published, an artifact computes what the model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from support.gates import SAMPLE, exporter, own
from support.models import FEATURES, classifier, data

from keras_export_callbacks import (
    ExportDirectory,
    ExportError,
    ExportEveryN,
)


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


def test_a_model_that_is_not_finite_yet_is_trained_and_told_when_it_is_exported() -> None:
    model = classifier()
    weights = model.layers[0].kernel
    weights.assign(weights.value * np.inf)
    callback = ExportEveryN("base", log_dir=None, sample_inputs=SAMPLE, on_error="warn")
    with pytest.warns(UserWarning, match="the model itself computes a value that is not finite"):
        model.fit(*data(), epochs=1, verbose=0, callbacks=[callback])
    assert model.optimizer.iterations == 1
    assert not ExportDirectory("base").versions()
