"""What is exported is what the metric was measured on."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.cases import mostly_zoo
from support.models import IS_JAX, Logs, assert_equal_state, classifier, data, state

from keras_export_callbacks import ExportDirectory, ExportEveryN, ExportOnImprove, restore

VALIDATION = data(seed=1)


def averaging(wrap: Any = lambda optimizer: optimizer) -> Any:
    """Weights move far in each step, and their average hardly."""
    return classifier(wrap(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.9)))


def measured_again(path: Any, model: Any) -> float:
    """The validation loss of a version."""
    restore(model, path)
    return float(model.evaluate(*VALIDATION, verbose=0, return_dict=True)["loss"])


def fit(model: Any, callbacks: list[Any], **options: Any) -> Any:
    options = {"validation_data": VALIDATION} | options
    return model.fit(*data(), batch_size=8, epochs=4, verbose=0, callbacks=callbacks, **options)


@pytest.mark.parametrize("swap_on_epoch", [False, True])
@pytest.mark.parametrize("is_first", [False, True])
def test_averaged_weights_are_exported_if_they_were_validated(
    swap_on_epoch: bool, is_first: bool
) -> None:
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch)
    best = ExportOnImprove("best", "val_loss", log_dir=None)
    every = ExportEveryN("every", log_dir=None)
    history = fit(averaging(), [best, every, swap] if is_first else [swap, best, every]).history
    assert len(every.exports) == 4
    for record in [*best.exports, *every.exports]:
        assert record.weights == "validated"
        assert record.metrics["val_loss"] == pytest.approx(
            measured_again(record.path, averaging()), rel=1e-5
        )
    assert best.exports[-1].value == min(history["val_loss"])


def test_so_it_is_with_a_scaled_loss() -> None:
    callback = ExportEveryN("every", log_dir=None)
    model = averaging(keras.optimizers.LossScaleOptimizer)
    fit(model, [callback, keras.callbacks.SwapEMAWeights()])
    for record in callback.exports:
        again = measured_again(record.path, averaging(keras.optimizers.LossScaleOptimizer))
        assert record.metrics["val_loss"] == pytest.approx(again, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"use_ema": True, "ema_overwrite_frequency": 3}])
def test_an_optimizers_own_average_is_exported_as_it_was_validated(options: Any) -> None:
    def build() -> Any:
        return classifier(keras.optimizers.SGD(0.5, **options))

    callback = ExportOnImprove("best", "val_loss", log_dir=None)
    fit(build(), [callback])
    for record in callback.exports:
        assert record.value == pytest.approx(measured_again(record.path, build()), rel=1e-5)


def test_a_metric_of_training_and_epochs_without_validation_go_with_the_current_weights() -> None:
    by_loss = ExportOnImprove("loss", "loss", log_dir=None)
    every = ExportEveryN("every", log_dir=None)
    fit(classifier(), [by_loss, every], validation_freq=2)
    assert {record.weights for record in by_loss.exports} == {"current"}
    assert [record.weights for record in every.exports] == [
        "current", "validated", "current", "validated",
    ]  # fmt: skip
    assert ExportDirectory("every").record(2).weights == "validated"


def test_a_metric_that_someone_else_measured_is_warned_of_if_weights_are_averaged() -> None:
    callbacks = [
        Logs("val_own", [3.0, 2.0, 2.5, 1.0]),
        ExportOnImprove("own", "val_own", mode="min", log_dir=None),
    ]
    with pytest.warns(UserWarning, match="'val_own' was not measured by the validation"):
        fit(averaging(), callbacks, validation_data=None)
    assert {record.weights for record in callbacks[1].exports} == {"current"}


def test_early_stopping_restores_what_was_exported_as_best() -> None:
    best = ExportOnImprove("best", "val_loss", log_dir=None)
    stop = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    values = iter([1.0, 0.5, 0.7, 0.9])

    def report(epoch: int, logs: Any) -> None:
        logs["val_loss"] = next(values)

    model = classifier(keras.optimizers.SGD(1.0))
    fit(model, [keras.callbacks.LambdaCallback(on_epoch_end=report), stop, best])
    assert best.last_export is not None
    assert best.last_export.epoch == 1
    exported = classifier(keras.optimizers.SGD(1.0))
    restore(exported, best.last_export.path)
    for ours, theirs in zip(exported.trainable_variables, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def noisy(layer: Any, *shape: int) -> Any:
    """A model around a layer that draws numbers in training, and an optimizer with a state."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input(shape)
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(layer(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse")
    return model


layers = keras.layers
DRAWING: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Dropout": (lambda: layers.Dropout(0.5), (4, 3)),
    "AlphaDropout": (lambda: layers.AlphaDropout(0.5), (4, 3)),
    "SpatialDropout1D": (lambda: layers.SpatialDropout1D(0.5), (4, 3)),
    "GaussianDropout": (lambda: layers.GaussianDropout(0.5), (4, 3)),
    "GaussianNoise": (lambda: layers.GaussianNoise(0.5), (4, 3)),
    "RandomFlip": (lambda: layers.RandomFlip(), (4, 4, 3)),
    "MultiHeadAttention": (lambda: Attention(), (4, 3)),
    "LSTM": (lambda: layers.LSTM(3, dropout=0.2), (4, 3)),
    "GRU": (lambda: layers.GRU(3, dropout=0.2, recurrent_dropout=0.2), (4, 3)),
    "SimpleRNN": (lambda: layers.SimpleRNN(3, recurrent_dropout=0.2), (4, 3)),
    "ConvLSTM1D": (lambda: layers.ConvLSTM1D(3, 2, dropout=0.2), (4, 4, 3)),
    "Bidirectional": (lambda: layers.Bidirectional(layers.LSTM(3, dropout=0.2)), (4, 3)),
}  # fmt: skip


class Attention(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.attend = keras.layers.MultiHeadAttention(2, 2, dropout=0.3)
        self.attend.build(shape, shape)

    def call(self, inputs: Any) -> Any:
        return self.attend(inputs, inputs)


@pytest.mark.parametrize(
    ("name", "validated"),
    # It takes JAX seconds to compile each. More are in tests/on_jax/test_restore.py.
    [("Dropout", True), ("SimpleRNN", True)]
    if IS_JAX
    else mostly_zoo(
        [*((name, True) for name in DRAWING), ("Dropout", False), ("LSTM", False)],
        ("Dropout", True),
        ("MultiHeadAttention", True),
        ("LSTM", False),
    ),
)
def test_a_resumed_training_is_bit_for_bit_the_same(name: str, validated: bool) -> None:
    build, shape = DRAWING[name]
    random = np.random.default_rng(0)
    x = random.normal(size=(8, *shape)).astype("float32")
    y = random.normal(size=(8, 1)).astype("float32")
    options: dict[str, Any] = {"batch_size": 4, "shuffle": False, "verbose": 0}
    if validated:
        options["validation_data"] = (x + 1, y)
    callback = ExportEveryN("base", log_dir=None, background=False)
    whole = noisy(build(), *shape)
    whole.fit(x, y, epochs=3, callbacks=[callback], **options)
    assert {record.weights for record in callback.exports} == {
        "validated" if validated else "current"
    }
    resumed = noisy(build(), *shape)
    restore(resumed, callback.exports[0].path)
    resumed.fit(x, y, epochs=3, initial_epoch=1, **options)
    assert_equal_state(state(whole), state(resumed))
    restore(resumed, callback.exports[-1].path)
    assert_equal_state(state(whole), state(resumed))


class Counting(keras.Model):
    """Draws from a generator of TensorFlow's, and counts its calls, in validation too."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.generator = tf.random.Generator.from_seed(3)
        self.count = tf.Variable(0.0)

    def call(self, inputs: Any) -> Any:
        self.count.assign_add(1.0)
        return self.dense(inputs + self.generator.normal(tf.shape(inputs)))


@pytest.mark.tensorflow_only("the model has variables and random numbers of TensorFlow")
def test_what_validation_moves_is_as_training_goes_on_with_it() -> None:
    x = np.ones((8, 3), "float32")
    model, other = Counting(), Counting()
    for each in (model, other):
        each.compile("sgd", "mse")
        each(x)
    callback = ExportEveryN("base", log_dir=None)
    model.fit(x, x[:, :1], validation_data=(x, x[:, :1]), verbose=0, callbacks=[callback])
    restore(other, callback.exports[-1].path)
    np.testing.assert_array_equal(other.generator.state, model.generator.state)
    assert other.count == model.count
