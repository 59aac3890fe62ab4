"""Endpoints of your own on JAX: functions of JAX, `keras.ops`, and TensorFlow around them."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
from support.artifacts import elements, stored_elements
from support.cases import mostly_zoo
from support.models import FEATURES, classifier, data

from keras_export_callbacks import ExportArchive, Exporter, ExportError
from keras_export_callbacks.archive._tensorflow import signature_defs

SPECS = [keras.InputSpec(shape=(None, FEATURES), dtype="float32")]
BATCH = data(5)[0]


def dense(units: int = 2) -> Any:
    layer = keras.layers.Dense(units)
    layer.build((None, FEATURES))
    return layer


def written(fn: Any, signature: Any = SPECS) -> tuple[ExportArchive, Any]:
    """An archive with one endpoint, and what it wrote, loaded."""
    archive = ExportArchive()
    archive.add_endpoint("serve", fn, signature)
    archive.write_out("artifact", verbose=False)
    return archive, tf.saved_model.load("artifact")


def again(archive: ExportArchive) -> Any:
    archive.write_out("artifact", verbose=False)
    return tf.saved_model.load("artifact")


def signature(name: str = "serve") -> tuple[list[str], list[str]]:
    """The names of the inputs and outputs of a signature in ``artifact``."""
    found = signature_defs(Path("artifact", "saved_model.pb").read_bytes())[name]
    return sorted(found.inputs), sorted(found.outputs)


def test_functions_of_jax_and_of_keras_in_one_archive() -> None:
    layer = dense()
    archive = ExportArchive()
    archive.track(layer)
    archive.add_endpoint("logits", layer, SPECS)
    archive.add_endpoint("shares", lambda x: jax.nn.softmax(layer(x)), SPECS)
    archive.add_endpoint("label", lambda x: keras.ops.argmax(layer(x), axis=-1), SPECS)
    archive.add_endpoint("norm", lambda x: jnp.linalg.norm(x, axis=1), SPECS)
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    logits = np.asarray(layer(BATCH))
    np.testing.assert_allclose(revived.logits(BATCH), logits, rtol=1e-5)
    np.testing.assert_allclose(revived.shares(BATCH), jax.nn.softmax(logits), rtol=1e-5)
    np.testing.assert_array_equal(revived.label(BATCH), logits.argmax(-1))
    np.testing.assert_allclose(revived.norm(BATCH), np.linalg.norm(BATCH, axis=1), rtol=1e-5)
    default = revived.signatures["serving_default"](tf.constant(BATCH))
    np.testing.assert_allclose(default["output_0"], logits, rtol=1e-5)
    assert stored_elements("artifact") == elements(layer.variables)


def test_functions_of_tensorflow_around_an_endpoint_take_text() -> None:
    layer = dense()
    kernel = np.arange(2 * FEATURES, dtype="float32").reshape(FEATURES, 2)
    layer.set_weights([kernel, np.array([0.5, 0.25], "float32")])
    initializer = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([0, 1], tf.int64))
    table = tf.lookup.StaticHashTable(initializer, default_value=FEATURES - 1)
    archive = ExportArchive()
    archive.track(layer)
    archive.track(table)
    numbers = archive.add_endpoint("numbers", layer, SPECS)

    @tf.function
    def texts(words: Any) -> Any:
        return {"words": words, "scores": numbers(tf.one_hot(table.lookup(words), FEATURES))}

    archive.add_endpoint("texts", texts, [tf.TensorSpec((None,), tf.string)])
    for path in ("first", "second"):
        archive.write_out(path, verbose=False)
        outputs = tf.saved_model.load(path).signatures["texts"](words=tf.constant(["b", "?"]))
        kernel, bias = layer.get_weights()
        np.testing.assert_allclose(outputs["scores"], kernel[[1, 3]] + bias)
        assert outputs["words"].numpy().tolist() == [b"b", b"?"]
        layer.set_weights([-kernel, bias])


def test_text_is_exported_by_a_callback_and_compared() -> None:
    model = classifier()

    def endpoints(archive: Any, model: Any) -> None:
        archive.track(model)
        scores = archive.add_endpoint("scores", lambda x: model(x, training=False), SPECS)

        @tf.function
        def from_text(lines: Any) -> Any:
            split = tf.strings.to_number(tf.strings.split(lines, ",")).to_tensor()
            return scores(tf.ensure_shape(split, (None, FEATURES)))

        archive.add_endpoint("from_text", from_text, [tf.TensorSpec((None,), tf.string)])

    lines = np.array([",".join(map(str, row)) for row in BATCH])
    with Exporter(
        "base", model, endpoints=endpoints, sample_inputs=lines, log_dir=None
    ) as exporter:
        first = exporter.export().result()
        model.set_weights([2 * weight for weight in model.get_weights()])
        second = exporter.export().result()
    for record in (first, second):
        assert record.parity is not None
        assert record.parity.differences.keys() == {"from_text/output_0"}
        assert record.parity.skipped.keys() == {"serving_default", "scores"}
    served = tf.saved_model.load(str(second.path)).signatures["from_text"](tf.constant(lines))
    np.testing.assert_allclose(served["output_0"], model(BATCH), rtol=1e-4)


def test_inputs_have_the_names_of_the_parameters() -> None:
    _, revived = written(lambda left, right: left - 2 * right, 2 * SPECS)
    assert signature() == (["left", "right"], ["output_0"])
    served = revived.serve(right=tf.constant(BATCH), left=tf.constant(3 * BATCH))
    np.testing.assert_allclose(served, BATCH, rtol=1e-5)


def test_inputs_and_outputs_are_nested() -> None:
    def serve(pair: Any, named: Any) -> Any:
        first, second = pair
        return {"sums": [first + named["a"], second + named["b"]], "first": first}

    spec = tf.TensorSpec((None, 2))
    _, revived = written(serve, [(spec, spec), {"a": spec, "b": spec}])
    one = np.ones((3, 2), "float32")
    outputs = revived.serve((one, 2 * one), {"a": 3 * one, "b": 4 * one})
    np.testing.assert_array_equal(outputs["sums"][0], 4 * one)
    np.testing.assert_array_equal(outputs["sums"][1], 6 * one)
    np.testing.assert_array_equal(outputs["first"], one)
    assert signature()[1] == ["first", "sums_0", "sums_1"]


def test_several_axes_are_free() -> None:
    spec = tf.TensorSpec((None, None, 2))
    _, revived = written(lambda x, y: keras.ops.concatenate([x, y], axis=1), [spec, spec])
    for rows, left, right in [(1, 2, 3), (4, 5, 1)]:
        outputs = revived.serve(tf.ones((rows, left, 2)), tf.zeros((rows, right, 2)))
        assert outputs.shape == (rows, left + right, 2)
        np.testing.assert_array_equal(tf.reduce_sum(outputs, (1, 2)), rows * [2 * left])


def test_axes_that_must_be_equal_are_one() -> None:
    """As those of a batch of tokens and of its mask."""
    specs = [tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, None), tf.bool)]
    _, revived = written(lambda tokens, mask: keras.ops.sum(tokens * mask, axis=-1), specs)
    tokens = np.arange(6, dtype="int32").reshape(2, 3)
    for sent in (tokens, tokens[:1, :2]):
        np.testing.assert_array_equal(revived.serve(sent, sent > 1), (sent * (sent > 1)).sum(-1))


def test_a_size_that_nobody_gave_is_told() -> None:
    layer = keras.layers.GRU(2, stateful=True)
    model = keras.Sequential([keras.Input((3, FEATURES), batch_size=4), layer])
    with pytest.raises(ExportError, match="Expected batch size: 4"):
        written(model, [tf.TensorSpec((None, 3, FEATURES))])
    _, revived = written(model, [tf.TensorSpec((4, 3, FEATURES))])
    sequence = np.ones((4, 3, FEATURES), "float32")
    first, second = revived.serve(sequence), revived.serve(sequence)
    np.testing.assert_allclose(first, model(sequence), rtol=1e-5)
    np.testing.assert_allclose(second, model(sequence), rtol=1e-5)
    assert not np.allclose(first, second)


def test_a_variable_that_is_returned_is_no_constant() -> None:
    variable = keras.Variable([1.0, 2.0])
    archive, revived = written(lambda x: {"x": x, "kept": variable})
    assert revived.serve(BATCH)["kept"].numpy().tolist() == [1.0, 2.0]
    variable.assign([3.0, 4.0])
    revived = again(archive)
    assert revived.serve(BATCH)["kept"].numpy().tolist() == [3.0, 4.0]


def test_a_variable_that_is_only_assigned_is_assigned_by_the_artifact() -> None:
    last = keras.Variable(np.zeros(FEATURES, "float32"), name="last")

    def serve(x: Any) -> Any:
        last.assign(x[-1])
        return x

    archive = ExportArchive()
    archive.add_endpoint("serve", serve, SPECS)
    archive.add_endpoint("recall", lambda x: x + last, SPECS)
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    revived.serve(BATCH)
    np.testing.assert_array_equal(revived.recall(0 * BATCH)[0], BATCH[-1])
    np.testing.assert_array_equal(last.value, np.zeros(FEATURES))


def test_a_variable_read_in_one_branch_only_is_found() -> None:
    """What is read first decides what is read next."""
    names = ["first", "second", "third"]
    variables = {name: keras.Variable(float(place)) for place, name in enumerate(names)}
    met: list[str] = []

    def serve(x: Any) -> Any:
        # A function may read more each time that it is traced.
        met.append(names[min(len(met), 2)])
        return x + sum(variables[name] for name in met)

    archive, _ = written(serve)
    for variable in variables.values():
        variable.assign(10.0)
    met[:] = names
    revived = again(archive)
    assert (revived.serve(0 * BATCH).numpy() % 10 == 0).all()


def test_a_replaced_variable_that_was_traced_is_still_written() -> None:
    class Holder:
        scale = keras.Variable(2.0)

    archive, revived = written(lambda x: x * Holder.scale)
    Holder.scale = keras.Variable(5.0)
    gc.collect()
    revived = again(archive)
    np.testing.assert_allclose(revived.serve(BATCH), 2 * BATCH)


def test_seeds_go_on_where_the_live_ones_are() -> None:
    generator = keras.random.SeedGenerator(3)

    def draw(x: Any) -> Any:
        return x + keras.random.normal((FEATURES,), seed=generator)

    archive, _ = written(draw)
    draw(BATCH)
    revived = again(archive)
    for _ in range(2):
        np.testing.assert_allclose(revived.serve(BATCH), draw(BATCH), rtol=1e-5)


def test_precisions_are_stored_as_they_are() -> None:
    values = [jnp.ones(2, dtype) for dtype in ("bfloat16", "float16", "int8", "uint32", "bool")]
    variables = [keras.Variable(value, dtype=str(value.dtype)) for value in values]
    archive, _ = written(lambda x: x + keras.ops.cast(variables[0][0], "float32"))
    archive.add_variable_collection("kept", variables)
    revived = again(archive)
    for ours, theirs in zip(revived.kept, values, strict=True):
        assert ours.dtype.name == str(theirs.dtype)
        np.testing.assert_array_equal(ours.numpy(), theirs)


MISTAKES: dict[str, tuple[Any, Any, str]] = {
    "text": (lambda x: x, [tf.TensorSpec((None,), tf.string)], "JAX has no strings"),
    "an operation of TensorFlow": (
        lambda x: tf.argmax(x, -1), SPECS, r"Use `keras\.ops` or `jax\.numpy`",
    ),
    "an operation of NumPy": (lambda x: np.sort(x), SPECS, r"Use `keras\.ops` or `jax\.numpy`"),
    "an unknown rank": (lambda x: x, [tf.TensorSpec(None)], "a known number of axes"),
    "a compiled function": (
        jax.jit(lambda x: x), SPECS, r"Pass the function that you gave to `jax\.jit`",
    ),
    "an output that is None": (lambda x: {"a": x, "b": None}, SPECS, "returns None as 'b'"),
    "an output that is text": (lambda x: "text", SPECS, "'serve' cannot be traced"),
    "a decision by values": (lambda x: x if x[0, 0] > 0 else -x, SPECS, "cannot be traced"),
    "other sizes": (lambda x: x @ jnp.ones((7, 2)), SPECS, "cannot be traced"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_says_what_to_do(mistake: str) -> None:
    fn, specs, told = MISTAKES[mistake]
    with pytest.raises(ExportError, match=told):
        written(fn, specs)
    assert not Path("artifact").exists()


def test_options_of_keras_for_jax_have_no_effect() -> None:
    archive = ExportArchive()
    archive.add_endpoint("twice", lambda x: 2 * x, SPECS, is_static=True)
    archive.track_and_add_endpoint("serve", dense(), SPECS, jax2tf_kwargs={"with_gradient": False})
    archive.write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    np.testing.assert_array_equal(revived.twice(BATCH), 2 * BATCH)
    with pytest.raises(ExportError, match=r"options is_dynamic.*jax2tf_kwargs and is_static"):
        archive.add_endpoint("other", lambda x: x, SPECS, is_dynamic=True)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    mostly_zoo(
        [("float32", 1e-5), ("mixed_bfloat16", 0.02), ("mixed_float16", 0.002)],
        ("mixed_float16", 0.002),
    ),
)
def test_attention_is_served_by_devices_that_have_no_fused_kernel(
    dtype: str, tolerance: float
) -> None:
    """On a GPU, Keras chooses a fused kernel for half precision."""

    def attention(flash_attention: bool, dtype: str) -> Any:
        tokens = keras.Input((6, 8))
        layer = keras.layers.MultiHeadAttention(
            2, 8, flash_attention=flash_attention, dtype=dtype, name="attention"
        )
        return keras.Model(tokens, layer(tokens, tokens))

    fused, plain = attention(True, dtype), attention(False, "float32")
    plain.set_weights(fused.get_weights())
    _, revived = written(
        lambda x: fused(x, training=False), [keras.InputSpec(shape=(None, 6, 8), dtype="float32")]
    )
    batch = np.random.default_rng(0).normal(size=(3, 6, 8)).astype("float32")
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(plain(batch))
    found = np.asarray(revived.serve(batch)).astype("float32")
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


OPERATIONS: dict[str, Any] = {
    "erf": keras.ops.erf,
    "gelu": keras.activations.gelu,
    "top_k": lambda x: keras.ops.top_k(x, 2),
    "argpartition": lambda x: keras.ops.sort(keras.ops.argpartition(x, 2)),
    "sinh": keras.ops.sinh,
    "cosh": keras.ops.cosh,
    "arcsin": lambda x: keras.ops.arcsin(keras.ops.tanh(x)),
    "arccos": lambda x: keras.ops.arccos(keras.ops.tanh(x)),
    "arcsinh": keras.ops.arcsinh,
    "arccosh": lambda x: keras.ops.arccosh(x**2 + 1),
    "arctanh": lambda x: keras.ops.arctanh(keras.ops.tanh(x)),
    "tan": keras.ops.tan,
    "special functions": lambda x: jax.scipy.special.digamma(x**2 + 1) + jax.lax.erfc(x),
    "sort and take": lambda x: keras.ops.take_along_axis(x, keras.ops.argsort(x), axis=1),
    "quantile": lambda x: keras.ops.quantile(x, 0.3, axis=1),
    "Fourier transform": lambda x: keras.ops.rfft(x)[0],
}


@pytest.mark.parametrize("name", mostly_zoo(OPERATIONS, "gelu", "top_k", "sinh"))
def test_an_operation_is_computed_for_any_batch(name: str) -> None:
    """JAX writes some of them as composites, whose sizes TensorFlow does not find."""
    _, revived = written(OPERATIONS[name])
    for batch in (BATCH, BATCH[:1]):
        expected = tf.nest.flatten(OPERATIONS[name](jnp.asarray(batch)))
        for ours, theirs in zip(tf.nest.flatten(revived.serve(batch)), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, 1e-5, 1e-5)


@pytest.mark.parametrize(
    "fn",
    mostly_zoo(
        [
            keras.ops.inv,
            keras.ops.cholesky,
            keras.ops.det,
            keras.ops.svd,
            keras.ops.qr,
            keras.ops.eigh,
            lambda x: keras.ops.solve(x, x),
            lambda x: keras.ops.solve_triangular(x, x),
        ],
        keras.ops.inv,
        keras.ops.svd,
    ),
)
def test_linear_algebra_that_tensorflow_does_not_have_is_refused(fn: Any) -> None:
    with pytest.raises(
        ExportError,
        match=r"^Endpoint 'serve' .* linear algebra for which JAX calls \['(lapack|blas)_",
    ):
        written(fn, [keras.InputSpec(shape=(None, 4, 4), dtype="float32")])
