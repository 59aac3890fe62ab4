"""The model gets the sample as `fit` gives it, the artifact as a client sends it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from support.models import assert_equal_state, state
from support.processes import run_in_c

from keras_export_callbacks import (
    ExportArchive,
    ExportDirectory,
    Exporter,
    ExportError,
    ExportEveryN,
    standard_endpoints,
)

layers = keras.layers
ROWS = np.arange(12, dtype="float32").reshape(4, 3) / 7


class Pixels(keras.Model):
    """What it computes depends on the dtype that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        return self.dense(tf.image.convert_image_dtype(inputs, tf.float32))


class Buckets(keras.Model):
    """Tells large ids apart."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        return self.dense(tf.one_hot(inputs % 7, 7))


def published(model: Any, sample: Any, **options: Any) -> Any:
    """The record of a version that was compared on `sample`."""
    with Exporter("base", model, log_dir=None, sample_inputs=sample, **options) as exporter:
        return exporter.export().result()


def own(fn: Any, signature: Any) -> Any:
    """Endpoints of one function."""

    def register(archive: ExportArchive, model: Any) -> None:
        archive.add_endpoint("serve", fn, signature)

    return register


def a_model() -> Any:
    return keras.Sequential([keras.Input((3,)), layers.Dense(2)])


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (Pixels, np.arange(24, dtype="uint8").reshape(8, 3) * 10),
        (Buckets, np.arange(2**24, 2**24 + 8)),
    ],
    ids=["images as bytes", "ids above 2**24"],
)
def test_a_subclassed_model_is_served_for_the_dtype_it_was_trained_on(build: Any, x: Any) -> None:
    model = build()
    model.compile("sgd", "mse")
    callback = ExportEveryN("base", log_dir=None, sample_inputs=x[:2])
    model.fit(x, np.ones((8, 2), "float32"), verbose=0, callbacks=[callback])
    (record,) = callback.exports
    assert record.endpoints["serve"].inputs["inputs"].dtype == x.dtype
    served = run_in_c(record.path, "serve", {"inputs": x})
    np.testing.assert_allclose(served["output_0"], model.predict(x, verbose=0), rtol=1e-5)


@pytest.mark.parametrize("is_built", [False, True])
def test_without_a_sample_the_dtype_is_that_of_the_batches_of_fit(is_built: bool) -> None:
    x = np.arange(24, dtype="uint8").reshape(8, 3) * 10
    model = Pixels()
    if is_built:
        model(x)
    model.compile("sgd", "mse", steps_per_execution=2)
    callback = ExportEveryN("base", log_dir=None)
    model.fit(
        x, np.ones((8, 2), "float32"), batch_size=2, epochs=2, verbose=0, callbacks=[callback]
    )
    for record in callback.exports:
        assert record.endpoints["serve"].inputs["inputs"].dtype == "uint8"
    served = run_in_c(callback.exports[-1].path, "serve", {"inputs": x})
    np.testing.assert_allclose(served["output_0"], model.predict(x, verbose=0), rtol=1e-5)


def test_a_guess_of_the_dtype_is_warned_of_once() -> None:
    model = Pixels()
    model(ROWS)
    with Exporter("base", model, log_dir=None) as exporter:
        with pytest.warns(UserWarning, match="does not record the dtype.*exported for float32"):
            exporter.export().result()
        exporter.export().result()


BYTES = np.arange(24, dtype="uint8").reshape(8, 3) * 10
LABELS = np.ones((8, 2), "float32")


class Scaling(keras.Model):
    """Its step calls it with something else than `fit` feeds."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)

    def train_step(self, data: Any) -> Any:
        x, y = data
        x = tf.cast(x, tf.float32) / 255.0
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def test_what_a_step_of_ones_own_is_fed_says_nothing_of_the_call() -> None:
    for sample in (None, BYTES[:2].astype("float32") / 255):
        model = Scaling()
        model.compile("sgd", "mse")
        callback = ExportEveryN(f"base{sample is None}", log_dir=None, sample_inputs=sample)
        warned = pytest.warns(UserWarning, match="does not record the dtype")
        with warned if sample is None else contextlib.nullcontext():
            model.fit(BYTES, LABELS, verbose=0, callbacks=[callback])
        assert callback.exports[-1].endpoints["serve"].inputs["inputs"].dtype == "float32"


def test_a_fit_with_another_dtype_than_the_last_is_told_or_known_by_the_sample() -> None:
    model = Pixels()
    model.compile("sgd", "mse")
    model.fit(BYTES / 255, LABELS, verbose=0)
    first = ExportEveryN("known", log_dir=None, sample_inputs=BYTES[:2])
    with pytest.raises(ExportError, match=r"sample_inputs of uint8. `fit` calls .* with float32"):
        model.fit(BYTES, LABELS, verbose=0, callbacks=[first])
    model.fit(BYTES, LABELS, verbose=0)
    model.fit(BYTES, LABELS, verbose=0, callbacks=[first])
    assert first.exports[-1].endpoints["serve"].inputs["inputs"].dtype == "uint8"
    with pytest.warns(UserWarning, match="does not record the dtype"):
        model.fit(BYTES, LABELS, verbose=0, callbacks=[ExportEveryN("told", log_dir=None)])


@pytest.mark.parametrize("convert", [lambda x: x.astype("int64"), lambda x: x.astype("float32")])
def test_a_sample_of_another_dtype_than_fit_feeds_is_told_by_its_dtype(convert: Any) -> None:
    model = Pixels()
    model.compile("sgd", "mse")
    callback = ExportEveryN("base", log_dir=None, sample_inputs=convert(BYTES[:2]))
    with pytest.raises(ExportError, match=r"sample_inputs of .*`fit` calls .* with uint8"):
        model.fit(BYTES, LABELS, batch_size=4, verbose=0, callbacks=[callback])
    assert model.optimizer.iterations == 1


def test_lists_of_numbers_are_of_the_dtype_that_fit_feeds() -> None:
    model = Pixels()
    model.compile("sgd", "mse")
    callback = ExportEveryN("base", log_dir=None, sample_inputs=BYTES[:2].tolist())
    model.fit(BYTES, LABELS, verbose=0, callbacks=[callback])
    assert callback.exports[-1].endpoints["serve"].inputs["inputs"].dtype == "uint8"


def test_so_is_a_part_of_a_model() -> None:
    outer = keras.Model()
    outer.inner = Pixels()
    sample = np.full((2, 3), 255, "uint8")
    outer.inner(sample)
    record = published(
        outer, sample, endpoints=lambda archive, model: standard_endpoints(archive, model.inner)
    )
    assert record.endpoints["serve"].inputs["inputs"].dtype == "uint8"


def test_an_endpoint_for_another_dtype_than_the_samples_is_not_published() -> None:
    model = Pixels()
    sample = np.full((2, 3), 200, "uint8")
    model(sample)
    endpoints = own(lambda inputs: model(inputs), [tf.TensorSpec((None, 3), tf.float32)])
    with Exporter("base", model, log_dir=None, sample_inputs=sample, endpoints=endpoints) as made:
        failed = made.export().exception()
        with pytest.raises(ExportError, match="differs by up to"):
            made.wait()
    assert isinstance(failed, ExportError)
    assert not ExportDirectory("base").versions()


def test_a_guess_of_the_dtype_is_told_when_it_is_wrong() -> None:
    model = Buckets()
    model(np.arange(3))
    with (
        Exporter("base", model, log_dir=None) as exporter,
        pytest.warns(UserWarning, match="does not record the dtype"),
        pytest.raises(ExportError, match=r"(?s)float32 was assumed.*`sample_inputs`.*TensorSpec"),
    ):
        exporter.export()


class Towers(keras.Model):
    def call(self, inputs: Any) -> Any:
        return inputs["user"]["id"] - 2 * inputs["item"]["id"]


def functional_towers() -> Any:
    inputs = {name: {"id": keras.Input((3,))} for name in ("user", "item")}
    return keras.Model(inputs, inputs["user"]["id"] - 2 * inputs["item"]["id"])


@pytest.mark.parametrize("build", [Towers, functional_towers])
def test_equal_names_of_leaves_are_told_apart_by_their_paths(build: Any) -> None:
    model = build()
    sample = {"user": {"id": ROWS}, "item": {"id": ROWS + 1}}
    model(sample)
    record = published(model, sample)
    assert set(record.endpoints["serve"].inputs) == {"user_id", "item_id"}
    served = run_in_c(record.path, "serve", {"user_id": ROWS, "item_id": ROWS + 1})
    np.testing.assert_allclose(served["output_0"], ROWS - 2 * (ROWS + 1), rtol=1e-6)


class Sum(keras.Model):
    """Sums whatever it is called with."""

    def call(self, inputs: Any) -> Any:
        return sum(tf.nest.flatten(inputs))


def called(inputs: Any) -> Any:
    model = Sum()
    model(inputs)
    return model


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"a": {"b_c": ROWS}, "a_b": {"c": ROWS}}, "would both be called 'a_b_c'"),
        ({"Age": ROWS, "age": ROWS}, "'Age' and 'age'.*same name"),
        ({"a-b": ROWS, "a.b": ROWS}, "same name"),
        ({"sepal length (cm)": ROWS}, r"'sepal length \(cm\)'.*such as 'sepal_length__cm'"),
        ({"my feature": ROWS, "other": ROWS}, "'my feature', which no SavedModel"),
        ({"größe": ROWS, "other": ROWS}, "'größe', which no SavedModel"),
        ({"self": ROWS, "other": ROWS}, "'self', which no SavedModel.*such as 'self_'"),
        ({"class": ROWS, "other": ROWS}, "'class', which no SavedModel.*such as 'class_'"),
        ({"_x": ROWS, "other": ROWS}, "'_x', which no SavedModel.*such as 'x'"),
        ({0: ROWS, 1: ROWS}, r"with the keys \[0, 1\]. Expected strings"),
    ],
)
def test_names_that_no_signature_can_have_are_told_before_training(inputs: Any, told: str) -> None:
    model = called(inputs)
    model.compile("sgd", "mse")
    callback = ExportEveryN("base", log_dir=None)
    with pytest.raises(ExportError, match=told):
        model.fit(inputs, ROWS, verbose=0, callbacks=[callback])
    assert model.optimizer.iterations == 0


def unnamed(count: int) -> Any:
    inputs = [keras.Input((3,)) for _ in range(count)]
    return keras.Model(inputs, sum((i + 1) * item for i, item in enumerate(inputs)))


SPEC = tf.TensorSpec((None, 3))


@pytest.mark.parametrize(
    ("model", "sample", "endpoints"),
    [
        (unnamed(2), [ROWS, ROWS + 1], None),
        (unnamed(3), (ROWS, ROWS + 1, ROWS + 2), None),
        (called([ROWS, (ROWS, {"a": ROWS})]), [ROWS, (ROWS + 1, {"a": ROWS + 2})], None),
        (called({"inputs": ROWS, "x": [ROWS]}), {"inputs": ROWS, "x": [ROWS + 1]}, None),
        (a_model(), [[ROWS, ROWS + 1]], own(lambda x: x[0] - x[1], [[SPEC, SPEC]])),
        (a_model(), [[ROWS, ROWS + 1]][0], own(lambda *x: x[0] - x[1], [SPEC, SPEC])),
        (
            a_model(),
            {"x": ROWS, "y": ROWS + 1},
            own(lambda x: x["x"] - x["y"], [{"x": SPEC, "y": SPEC}]),
        ),
    ],
    ids=["two", "three", "nested", "like its argument", "own list", "own arguments", "own dict"],
)
def test_inputs_without_names_are_compared(model: Any, sample: Any, endpoints: Any) -> None:
    if endpoints is not None and isinstance(sample, list) and len(sample) == 1:
        sample = sample[0]
    record = published(model, sample, **({"endpoints": endpoints} if endpoints else {}))
    assert record.parity is not None
    assert record.parity.differences["serve/output_0"] == pytest.approx(0, abs=1e-6)


RECURRENT = {
    "LSTM": lambda: layers.LSTM(2, dropout=0.2),
    "GRU": lambda: layers.GRU(2, recurrent_dropout=0.2),
    "SimpleRNN": lambda: layers.SimpleRNN(2, dropout=0.2),
    "Bidirectional": lambda: layers.Bidirectional(layers.LSTM(2, dropout=0.2)),
    "ConvLSTM1D": lambda: keras.Sequential(
        [layers.Reshape((4, 3, 1)), layers.ConvLSTM1D(2, 2, dropout=0.2)]
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.zoo] if name != "LSTM" else []) for name in RECURRENT],
)
def test_recurrent_dropout_is_inference_and_its_seeds_stay(name: str) -> None:
    """Its layers move their seeds in inference, too, for nothing."""
    x = np.random.default_rng(0).normal(size=(4, 4, 3)).astype("float32")
    states = []
    for sample in (None, x[:2]):
        keras.utils.set_random_seed(4)
        hidden = [RECURRENT[name](), layers.Flatten(), layers.Dense(1)]
        model = keras.Sequential([keras.Input((4, 3)), *hidden])
        model.compile("adam", "mse")
        callback = ExportEveryN(f"base{sample is None}", log_dir=None, sample_inputs=sample)
        model.fit(x, x[:, 0, :1], epochs=2, verbose=0, callbacks=[callback])
        states.append(state(model))
    assert_equal_state(*states)
    record = callback.exports[-1]
    assert record.parity is not None
    assert record.parity.differences["serve/output_0"] < 1e-6
    assert "draws random numbers" in record.parity.skipped["call_training"]


def test_so_is_a_function_of_ones_own_around_it() -> None:
    model = keras.Sequential([keras.Input((4, 3)), layers.LSTM(2, dropout=0.2)])
    function = tf.function(model, input_signature=[tf.TensorSpec((None, 4, 3), name="x")])
    seeds = [seed.numpy() for seed in model.non_trainable_variables]
    record = published(
        model,
        np.ones((2, 4, 3), "float32"),
        endpoints=lambda archive, model: archive.add_endpoint("serve", function),
    )
    assert record.parity is not None
    for before, after in zip(seeds, model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(before, after)


def test_dropout_in_training_mode_is_no_inference() -> None:
    """It changes nothing but seeds, and yet what it computes depends on them."""
    model = keras.Sequential([keras.Input((3,)), layers.Dropout(0.5)])
    record = published(model, ROWS)
    assert record.parity is not None
    assert set(record.parity.differences) == {"serve/output_0", "serving_default/output_0"}
    assert set(record.parity.skipped) == {"call_training"}


DTYPES = [
    *("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16"),
    *("uint32", "uint64", "bool", "complex64", "complex128", "bfloat16"),
]


def test_arguments_and_outputs_of_every_dtype_and_shape_are_compared() -> None:
    """Scalars, empty arrays and arrays that do not lie in one piece."""

    def register(archive: ExportArchive, model: Any) -> None:
        for dtype in DTYPES:
            signature = [tf.TensorSpec(None, dtype, "x")]
            archive.add_endpoint(f"{dtype}_as_it_is", lambda x: {"y": x, "z": x}, signature)

    shapes = [np.array(1), np.ones((0, 2)), np.ones((6, 4))[::2, 1::2].T]
    for sample in shapes:
        record = published(a_model(), sample.astype("int8"), endpoints=register)
        assert record.parity is not None
        assert len(record.parity.differences) == 2 * len(DTYPES) + 2
        assert set(record.parity.differences.values()) == {0.0}
        kind = ml_dtypes.bfloat16
        (output,) = [run_in_c(record.path, "bfloat16_as_it_is", {"x": sample.astype(kind)})["y"]]
        assert (output.shape, output.dtype) == (sample.shape, kind)


def test_scalar_arguments_and_outputs() -> None:
    model = a_model()
    endpoints = own(
        lambda x, scale: {"scaled": scale * model(x), "twice": scale * 2, "count": tf.size(x)},
        [SPEC, tf.TensorSpec((), tf.float32)],
    )
    record = published(model, [ROWS, 3.0], endpoints=endpoints)
    assert record.parity is not None
    assert len(record.parity.differences) == 6


def test_scalars_that_are_computed_in_bfloat16() -> None:
    def mean(x: Any) -> Any:
        return tf.reduce_mean(tf.cast(x, tf.bfloat16))

    record = published(a_model(), ROWS, endpoints=own(mean, [SPEC]))
    assert record.parity is not None


class Pair(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        (lambda x: tf.math.top_k(x, 2), {"values", "indices"}),
        (lambda x: tf.unique_with_counts(tf.reshape(x, [-1])), {"y", "idx", "count"}),
        (lambda x: Pair(x, 2 * x), {"left", "right"}),
        (lambda x: Pair(x, Pair(x, 2 * x)), {"left", "right_left", "right_right"}),
        (lambda x: {"pair": Pair(x, 2 * x)}, {"pair_left", "pair_right"}),
        (lambda x: [Pair(x, 2 * x), x], {"output_0_left", "output_0_right", "output_1"}),
    ],
)
def test_named_tuples_name_outputs_by_their_fields(returned: Any, names: set[str]) -> None:
    record = published(a_model(), ROWS, endpoints=own(returned, [SPEC]))
    assert record.parity is not None
    assert {name.partition("/")[2] for name in record.parity.differences} == names
    assert set(record.endpoints["serve"].outputs) == names


def test_what_is_no_tensor_is_told_before_training() -> None:
    class Thing:
        pass

    with pytest.raises(ExportError, match="returns None as 'b'"):
        published(a_model(), ROWS, endpoints=own(lambda x: {"a": x, "b": None}, [SPEC]))


def test_defaults_are_no_inputs() -> None:
    def generate(noise: Any, steps: int = 3) -> Any:
        return noise * steps

    record = published(a_model(), ROWS, endpoints=own(generate, [SPEC]))
    assert set(record.endpoints["serve"].inputs) == {"noise"}
    assert record.parity is not None


def masked() -> Any:
    x, mask = keras.Input((3,), name="x"), keras.Input((3,), dtype="int32", name="mask")
    return keras.Model([x, mask], x * keras.ops.cast(mask, "float32"))


@pytest.mark.parametrize(
    "sample",
    [
        [ROWS, np.ones((4, 3), bool)],
        [ROWS.astype("float64"), np.ones((4, 3), "int64")],
        [tf.constant(ROWS, tf.float64), tf.ones((4, 3), tf.int64)],
        [tf.cast(ROWS * 7, tf.int64), tf.ones((4, 3), tf.uint8)],
        {"x": ROWS, "mask": np.ones((4, 3), "int32")},
        [ROWS.tolist(), [[1, 0, 1]] * 4],
        [keras.Variable(ROWS), tf.Variable(tf.ones((4, 3), tf.int32))],
    ],
    ids=["bool", "double", "double tensors", "integers", "by name", "lists", "variables"],
)
def test_a_sample_that_fit_takes_is_cast_as_keras_does(sample: Any) -> None:
    record = published(masked(), sample)
    assert record.parity is not None
    assert record.parity.differences["serve/output_0"] == 0.0


def test_a_cast_that_loses_values_is_told() -> None:
    with pytest.warns(UserWarning, match="'mask' are float32, and the endpoint takes int32"):
        published(masked(), [ROWS, np.full((4, 3), 1.7, "float32")])


def test_a_column_may_lack_its_last_axis_as_in_fit() -> None:
    model = keras.Sequential([keras.Input((1,)), layers.Dense(2)])
    record = published(model, np.arange(4, dtype="float32"))
    assert record.parity is not None
    assert ExportDirectory("base").verify(1) == []
    assert run_in_c(Path(record.path), "serve", {"inputs": ROWS[:, :1]})["output_0"].shape == (4, 2)
