"""Real models are compared before they are published, and pass."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.cases import mostly_zoo
from support.examples import EXAMPLES
from support.kinds import KINDS
from support.models import IS_OLD_KERAS, state

from keras_export_callbacks import ExportDirectory, ExportError, ExportOnImprove, restore


def exported(model: Any, x: Any, y: Any, sample: Any, **options: Any) -> Any:
    """The last version of a fit, which was compared."""
    callback = ExportOnImprove(
        "best", "loss", mode="min", log_dir=None, sample_inputs=sample, **options
    )
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[callback])
    for record in callback.exports:
        assert record.parity is not None
        assert {"serving_default"} <= {name.partition("/")[0] for name in record.parity.differences}
        assert ExportDirectory("best").verify(record.version) == []
    return callback.last_export


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_zoo(KINDS, "dense", "LSTM", "subclassed", "mixed_float16"))
def test_every_kind_of_model(name: str) -> None:
    model, x = KINDS[name].build()
    if name == "int8":
        pytest.skip("int8 weights without LoRA are not trained")
    if name == "TextVectorization" and IS_OLD_KERAS:
        pytest.skip("the train step of Keras 3.8 fails in its own Flatten")
    y = tf.nest.map_structure(lambda item: np.ones(item.shape, "float32"), model(x))
    sample = tf.nest.map_structure(lambda item: item[:2], x)
    assert exported(model, x, y, sample) is not None


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.filterwarnings("ignore:Training cannot be resumed from these versions")
def test_models_as_in_keras_examples(name: str) -> None:
    keras.utils.set_random_seed(1)
    example = EXAMPLES[name]()
    record = exported(
        example.model, example.x, example.y, example.sample_inputs, endpoints=example.endpoints
    )
    assert record is not None
    assert record.version == len(ExportDirectory("best").versions())
    revived = tf.saved_model.load(str(record.path))
    assert set(record.endpoints) == set(revived.signatures)


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize(
    "name", ["Transformer with masks", "several tasks", "LoRA", "FeatureSpace"]
)
def test_it_goes_back_into_a_model(name: str) -> None:
    example, other = EXAMPLES[name](), EXAMPLES[name]()
    record = exported(example.model, example.x, example.y, example.sample_inputs)
    restore(other.model, record.path)
    if record.epoch == 1:
        for ours, theirs in zip(state(example.model), state(other.model), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    sample = tf.nest.map_structure(tf.convert_to_tensor, example.sample_inputs)
    served = tf.saved_model.load(str(record.path)).signatures["serve"]
    named = sample if isinstance(sample, dict) else {"inputs": sample}
    outputs = served(**named)
    expected = other.model(sample)
    for name, one in outputs.items():
        two = expected[name] if isinstance(expected, dict) else expected
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_a_stateful_model_is_told_before_training() -> None:
    stack = [keras.layers.LSTM(2, stateful=True), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input(batch_shape=(4, 3, 2)), *stack])
    model.compile("adam", "mse")
    x = np.ones((8, 3, 2), "float32")
    with pytest.raises(ExportError, match="'serve' changes variables"):
        exported(model, x, x[:, 0, :1], x[:4])
