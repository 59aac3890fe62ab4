"""What is wrong with a model or its endpoints is told before training, or after one batch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import FEATURES, classifier, data, state

from keras_export_callbacks import (
    ExportArchive,
    ExportDirectory,
    ExportError,
    ExportEveryN,
    ExportOnImprove,
    restore,
    standard_endpoints,
)

layers = keras.layers


class Late(keras.Model):
    """Built by its first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)


def misspelt(archive: ExportArchive, model: Any) -> None:
    archive.add_endpoint("serve", lambda x: model.denes(x), [tf.TensorSpec((None, FEATURES))])


def steps_until_told(model: Any, told: str, callback: Any, batch_size: int = 8) -> int:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    with pytest.raises(ExportError, match=told):
        model.fit(*data(), batch_size=batch_size, epochs=3, verbose=0, callbacks=[callback])
    assert not ExportDirectory("base").versions()
    return int(model.optimizer.iterations.numpy())


@pytest.mark.parametrize("kind", [ExportEveryN, ExportOnImprove])
def test_a_mistake_in_own_endpoints_is_told_before_training_or_after_a_batch(kind: Any) -> None:
    callback = kind("base", log_dir=None, endpoints=misspelt)
    assert steps_until_told(classifier(), "no attribute 'denes'", callback) == 0
    callback = kind("base", log_dir=None, endpoints=misspelt)
    assert steps_until_told(Late(), "no attribute 'denes'", callback) == 1


def test_an_epoch_of_a_single_batch_is_enough() -> None:
    callback = ExportOnImprove("base", "loss", log_dir=None, endpoints=misspelt)
    assert steps_until_told(Late(), "no attribute 'denes'", callback, batch_size=32) == 1


def test_a_sample_that_does_not_fit_a_late_model_is_told_after_a_batch() -> None:
    callback = ExportEveryN("base", log_dir=None, sample_inputs=np.ones((2, FEATURES + 1)))
    assert steps_until_told(Late(), r"received \(2, 5\)", callback) == 1


class Gan(keras.Model):
    """Trained by a step of its own, as most generative models are; has no `call`."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = keras.Sequential([layers.Dense(4), layers.Dense(1)])
        self.generator = keras.Sequential([keras.Input((2,)), layers.Dense(3)])

    def compile(self) -> None:
        super().compile()
        self.generator_optimizer = keras.optimizers.Adam()
        self.discriminator_optimizer = keras.optimizers.Adam()

    def train_step(self, data: Any) -> Any:
        noise = tf.ones((4, 2))
        with tf.GradientTape(persistent=True) as tape:
            fake = self.discriminator(self.generator(noise))
            real = self.discriminator(data)
            losses = tf.reduce_mean(fake), tf.reduce_mean(real - fake)
        parts = (
            (self.generator, self.generator_optimizer),
            (self.discriminator, self.discriminator_optimizer),
        )
        for (part, optimizer), loss in zip(parts, losses, strict=True):
            gradients = tape.gradient(loss, part.trainable_variables)
            optimizer.apply_gradients(zip(gradients, part.trainable_variables, strict=True))
        return {"loss": losses[0]}


REAL = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def trained(*callbacks: Any) -> Any:
    gan = Gan()
    gan.compile()
    gan.fit(REAL, batch_size=4, epochs=2, verbose=0, callbacks=list(callbacks))
    return gan


def test_a_model_without_call_gets_the_line_to_write_before_training() -> None:
    gan = Gan()
    gan.compile()
    callback = ExportEveryN("base", log_dir=None)
    with pytest.raises(ExportError, match=r"no `call`.*standard_endpoints\(archive, model\.d"):
        gan.fit(REAL, verbose=0, callbacks=[callback])
    assert not gan.discriminator.built


@pytest.mark.filterwarnings("ignore:Training cannot be resumed from these versions")
def test_that_line_exports_its_part() -> None:
    callback = ExportEveryN(
        "base",
        log_dir=None,
        sample_inputs=np.ones((2, 2), "float32"),
        endpoints=lambda archive, model: standard_endpoints(archive, model.generator),
    )
    gan = trained(callback)
    served = tf.saved_model.load(str(callback.exports[-1].path))
    np.testing.assert_allclose(
        served.serve(np.ones((1, 2), "float32")), gan.generator(np.ones((1, 2))), rtol=1e-6
    )


def test_a_model_without_call_is_tracked_and_restored_by_its_variables() -> None:
    def everything(archive: ExportArchive, model: Any) -> None:
        archive.track(model)
        archive.add_variable_collection("optimizer_variables", model.optimizer.variables)
        archive.add_endpoint(
            "generate", lambda noise: model.generator(noise), [tf.TensorSpec((None, 2))]
        )

    callback = ExportEveryN("base", log_dir=None, endpoints=everything)
    gan = trained(callback)
    other = trained()
    restore(other, callback.exports[-1].path)
    for ours, theirs in zip(state(gan), state(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Windows(layers.Layer):
    """Needs to know the size of its batch."""

    def call(self, inputs: Any) -> Any:
        return keras.ops.stack([inputs[i] for i in range(inputs.shape[0])])


class Fixed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.windows = Windows()

    def call(self, inputs: Any) -> Any:
        return self.windows(inputs)


def test_a_layer_that_needs_fixed_sizes_is_told_with_the_line_to_write() -> None:
    model = Fixed()
    model(np.ones((4, 3), "float32"))
    archive = ExportArchive()
    standard_endpoints(archive, model)
    with pytest.raises(ExportError, match=r"(?s)if no axis is free.*TensorSpec\(shape=\(1, 3\)"):
        archive.write_out("artifact")


def by_numpy(x: Any) -> Any:
    return tf.ensure_shape(tf.numpy_function(lambda a: a + 1, [x], tf.float32), x.shape)


def by_python(x: Any) -> Any:
    return tf.ensure_shape(tf.py_function(lambda a: a + 1, [x], tf.float32), x.shape)


def inside_another(x: Any) -> Any:
    return tf.cond(tf.reduce_all(x > 0), lambda: by_python(x), lambda: x)


@pytest.mark.parametrize("function", [by_numpy, by_python, inside_another])
def test_python_code_that_would_not_be_saved_is_refused_before_training(function: Any) -> None:
    model = keras.Sequential([keras.Input((FEATURES,)), layers.Lambda(function), layers.Dense(3)])
    callback = ExportEveryN("base", log_dir=None)
    told = r"runs Python code \(.*PyFunc.*keras.ops"
    assert steps_until_told(model, told, callback) == 0


class Joined(layers.Layer):
    """Takes several inputs."""

    def call(self, inputs: Any) -> Any:
        return sum(tf.nest.flatten(inputs))


@pytest.mark.parametrize("wrap", [lambda x: [x, x], lambda x: {"a": x, "b": x}])
def test_a_sequential_model_of_several_inputs_is_told(wrap: Any) -> None:
    x = np.ones((4, 3), "float32")
    model = keras.Sequential([Joined(), layers.Dense(2)])
    model(wrap(x))
    with pytest.raises(ExportError, match=r"list or dict.*`keras.Model\(inputs, outputs\)`"):
        standard_endpoints(ExportArchive(), model)
