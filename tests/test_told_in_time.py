"""What is wrong with a model or its endpoints is told before training, or after one batch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import FEATURES, IS_JAX, Logs, classifier, data, state

from keras_export_callbacks import (
    ExportArchive,
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    ExportOnImprove,
    restore,
    standard_endpoints,
)

layers = keras.layers


# On JAX, `fit` builds the model before the first batch, on TensorFlow by it.
BUILT_AFTER = 0 if IS_JAX else 1


class Late(keras.Model):
    """A model that `fit` builds."""

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
    return int(model.optimizer.iterations)


@pytest.mark.parametrize("kind", [ExportEveryN, ExportOnImprove])
def test_a_mistake_in_own_endpoints_is_told_before_training_or_after_a_batch(kind: Any) -> None:
    callback = kind("base", log_dir=None, endpoints=misspelt)
    assert steps_until_told(classifier(), "no attribute 'denes'", callback) == 0
    callback = kind("base", log_dir=None, endpoints=misspelt)
    assert steps_until_told(Late(), "no attribute 'denes'", callback) == BUILT_AFTER


def test_an_epoch_of_a_single_batch_is_enough() -> None:
    callback = ExportOnImprove("base", "loss", log_dir=None, endpoints=misspelt)
    assert steps_until_told(Late(), "no attribute 'denes'", callback, batch_size=32) == BUILT_AFTER


def test_a_sample_that_does_not_fit_a_late_model_is_told_after_a_batch() -> None:
    callback = ExportEveryN("base", log_dir=None, sample_inputs=np.ones((2, FEATURES + 1)))
    assert steps_until_told(Late(), r"received \(2, 5\)", callback) == BUILT_AFTER


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


TAPE = "Keras on JAX trains no model without `call`"
REAL = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def trained(*callbacks: Any) -> Any:
    gan = Gan()
    gan.compile()
    gan.fit(REAL, batch_size=4, epochs=2, verbose=0, callbacks=list(callbacks))
    return gan


@pytest.mark.tensorflow_only(TAPE)
def test_a_model_without_call_gets_the_line_to_write_before_training() -> None:
    gan = Gan()
    gan.compile()
    callback = ExportEveryN("base", log_dir=None)
    with pytest.raises(ExportError, match=r"no `call`.*standard_endpoints\(archive, model\.d"):
        gan.fit(REAL, verbose=0, callbacks=[callback])
    assert not gan.discriminator.built


@pytest.mark.tensorflow_only(TAPE)
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


@pytest.mark.tensorflow_only(TAPE)
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


@pytest.mark.tensorflow_only("JAX cannot trace functions of TensorFlow in a model")
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


def lines(capsys: Any) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line]


def test_each_epoch_says_whether_it_was_exported(capsys: Any) -> None:
    logs = Logs("m", [2.0, 3.0, None, 1.0])
    # In the background, a line about an export may come an epoch later.
    options: dict[str, Any] = {"verbose": 1, "background": False, "log_dir": None}
    callback = ExportOnImprove("base", "m", mode="min", **options)
    classifier().fit(*data(), epochs=4, verbose=0, callbacks=[logs, callback])
    said = lines(capsys)
    assert said[0].startswith("Epoch 1: exported version 1 (improved, m=2) to ")
    assert said[1:3] == [
        "Epoch 2: m=3 did not improve from 2.",
        "Epoch 3: not exported, because m had no finite value.",
    ]
    assert said[3].startswith("Epoch 4: exported version 2 (improved, m=1) to ")
    assert len(said) == 4
    again = ExportOnImprove("base", "m", mode="min", **options)
    classifier().fit(*data(), epochs=1, verbose=0, callbacks=[logs, again])
    assert again.last_export is None
    path = ExportDirectory("base").path
    assert lines(capsys) == [
        "Epoch 1: m=2 did not improve from 1.",
        f"Nothing was exported to '{path}': no epoch was better than m=1.",
    ]


def test_a_fit_says_why_it_exported_nothing(capsys: Any) -> None:
    for options in ({"n": 5}, {"only_if": lambda metrics: False}):
        callback = ExportEveryN("base", verbose=1, log_dir=None, **options)  # type: ignore
        classifier().fit(*data(), epochs=2, verbose=0, callbacks=[callback])
    path = ExportDirectory("base").path
    assert lines(capsys) == [
        f"Nothing was exported to '{path}': no export was due.",
        "Epoch 1: not exported, because `only_if` returned False.",
        "Epoch 2: not exported, because `only_if` returned False.",
        f"Nothing was exported to '{path}': `only_if` did not return True.",
    ]


def test_what_was_compared_is_said_once(capsys: Any) -> None:
    callback = ExportEveryN("base", verbose=1, log_dir=None, sample_inputs=data()[0][:2])
    classifier().fit(*data(), epochs=2, verbose=0, callbacks=[callback])
    said = [line for line in lines(capsys) if line.startswith("Compared")]
    assert said == [
        "Compared with the model: serve, serving_default. Not compared: call_training, which "
        "changes variables or draws random numbers, so calling it would disturb training."
    ]


@pytest.mark.parametrize("background", [True, False])
def test_what_fails_after_publishing_is_warned_of_and_training_goes_on(background: bool) -> None:
    def fail(record: Any) -> None:
        raise OSError("no space left")

    callback = ExportEveryN("base", log_dir=None, on_export=fail, background=background)
    model = classifier()
    with pytest.warns(UserWarning, match=r"Version \d was published, but.*no space left") as warned:
        model.fit(*data(), batch_size=8, epochs=3, verbose=0, callbacks=[callback])
    assert len(warned) == 3
    assert int(model.optimizer.iterations) == 12
    assert ExportDirectory("base").versions() == [1, 2, 3]


def net(inputs: int, name: str = "x") -> Any:
    x = keras.Input((inputs,), name=name)
    return keras.Model(x, layers.Dense(2)(x))


def test_other_inputs_or_outputs_than_before_are_named() -> None:
    def fit(model: Any, features: int, **options: Any) -> None:
        model.compile("sgd", "mse")
        callback = ExportEveryN("base", log_dir=None, **options)
        x = np.ones((4, features), "float32")
        model.fit(x, np.ones((4, 2)), epochs=2, verbose=0, callbacks=[callback])

    fit(net(3), 3)
    fit(net(3), 3)  # A warning would be an error.
    told = (
        r"Version 5 in '.*/base' has other inputs or outputs than version 4.*"
        r"'call_training', 'serve', 'serving_default': input 'x' was float32 \(any, 3\) and is "
        r"float32 \(any, 4\)\.$"
    )
    with pytest.warns(UserWarning, match=told) as warned:
        fit(net(4), 4)
    assert len(warned) == 1
    with pytest.warns(UserWarning, match=r"input 'x' was .* and is none; .*input 'y' was none"):
        fit(net(4, "y"), 4)
    with (
        pytest.warns(UserWarning, match=r"endpoint 'call_training': is gone"),
        Exporter("base", net(4, "y"), endpoints=serve_only, log_dir=None) as exporter,
    ):
        exporter.export()


def serve_only(archive: ExportArchive, model: Any) -> None:
    archive.track(model)
    archive.add_endpoint("serve", model.call, model.inputs)


def test_a_record_is_shown_in_one_line() -> None:
    with Exporter("base", classifier(), log_dir=None) as exporter:
        record = exporter.export(step=7, epoch=1, metrics={"loss": 0.123456789, "a\nb": 1}).result()
    path = str(record.path)
    assert repr(record) == (
        f"ExportRecord({path!r}, 'requested', epoch=1, step=7, loss=0.123457, 'a\\nb'=1)"
    )


def by_name(archive: ExportArchive, model: Any) -> None:
    standard_endpoints(archive, model)
    spec = tf.TensorSpec((None,), tf.string)
    archive.add_endpoint("lengths", lambda text: tf.strings.length(text), [spec])


@pytest.mark.parametrize("name", ["serve", "serving_default"])
def test_each_endpoint_may_have_its_own_sample(name: str) -> None:
    samples = {name: data()[0][:2], "lengths": ["a", "bcd"]}
    with Exporter(
        "base", classifier(), endpoints=by_name, sample_inputs=samples, log_dir=None
    ) as exporter:
        parity = exporter.export().result().parity
    assert parity.differences.keys() == {
        "serve/output_0",
        "serving_default/output_0",
        "lengths/output_0",
    }
    assert list(parity.skipped) == ["call_training"]


def test_an_endpoint_without_a_sample_is_told_and_one_with_a_wrong_sample_is_an_error() -> None:
    options: dict[str, Any] = {"endpoints": by_name, "log_dir": None}
    with Exporter("base", classifier(), sample_inputs={"lengths": ["a"]}, **options) as exporter:
        parity = exporter.export().result().parity
    assert parity.skipped["serve"] == "has no sample in `sample_inputs`"
    callback = ExportEveryN("other", sample_inputs={"serve": np.ones((2, 9))}, **options)
    told = r"sample_inputs\['serve'\]. It expects one batch that fits"
    with pytest.raises(ExportError, match=told):
        classifier().fit(*data(), verbose=0, callbacks=[callback])
    callback = ExportEveryN("other", sample_inputs={"lengths": ["a"], "serv": data()[0]}, **options)
    told = r"sample_inputs for \['serv'\], and there is no such endpoint. Expected some of"
    with pytest.raises(ExportError, match=told):
        classifier().fit(*data(), verbose=0, callbacks=[callback])


def test_a_dict_of_inputs_is_a_batch_also_if_an_input_is_called_as_an_endpoint() -> None:
    x, y = keras.Input((2,), name="serve"), keras.Input((2,), name="y")
    model = keras.Model({"serve": x, "y": y}, layers.Dense(1)(x + y))
    sample = {"serve": np.ones((3, 2)), "y": np.zeros((3, 2))}
    with Exporter("base", model, sample_inputs=sample, log_dir=None) as exporter:
        parity = exporter.export().result().parity
    assert parity.differences.keys() >= {"serve/output_0", "call_training/output_0"}
    alone = keras.Model({"serve": x}, layers.Dense(1)(x))
    sample = {"serve": np.ones((3, 2))}
    with Exporter("other", alone, sample_inputs=sample, log_dir=None) as exporter:
        assert exporter.export().result().parity.skipped == {}
