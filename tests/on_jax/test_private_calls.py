"""The calls into JAX and Keras that have no public way: each test fails when one moves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
from jax import export
from support.models import classifier, data

from keras_export_callbacks import ExportError
from keras_export_callbacks.archive._tensorflow import call_module
from keras_export_callbacks.archive.backends._jax import (
    STABLEHLO,
    held_array,
    is_compiled,
    plain_attention,
    portable_artifact,
    synchronize,
    trained_steps,
)


def exported() -> Any:
    (size,) = export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct((size,), "float32"), jax.ShapeDtypeStruct((size,), "int32")]
    function = jax.jit(lambda x, y: (x * 2, {"y": y + 1}))
    return export.export(function, platforms=("cpu", "cuda"))(*shapes)


def test_tensorflow_calls_a_module_in_the_version_that_it_reads() -> None:
    found = exported()
    assert tuple(map(int, STABLEHLO.split("."))) >= (1, 0, 0)
    module = portable_artifact(found)
    assert module.startswith(b"ML\xefR")  # What MLIR's bytecode begins with.
    assert f"StableHLO_v{STABLEHLO}".encode() in module

    @tf.function(input_signature=[tf.TensorSpec((None,)), tf.TensorSpec((None,), tf.int32)])
    def call(x: Any, y: Any) -> Any:
        return call_module(
            [x, y],
            module,
            version=found.calling_convention_version,
            dtypes=[tf.float32, tf.int32],
            shapes=[[None], [None]],
            platforms=found.platforms,
        )

    for size in (1, 3):
        first, second = call(tf.ones(size), tf.ones(size, tf.int32))
        assert (first.numpy().tolist(), second.numpy().tolist()) == (size * [2.0], size * [2])
    (node,) = [
        node for node in call.get_concrete_function().graph.as_graph_def().node
        if node.op == "XlaCallModule"
    ]  # fmt: skip
    assert list(node.attr["platforms"].list.s) == [b"CPU", b"CUDA"]


def test_what_a_module_does_not_need_is_no_argument() -> None:
    shapes = [jax.ShapeDtypeStruct((), "float32")] * 3
    found = export.export(jax.jit(lambda a, b, c: c))(*shapes)
    assert list(found.module_kept_var_idx) == [2]


def test_a_view_keeps_what_a_step_gets_to_overwrite() -> None:
    """The snapshot depends on this: it copies nothing."""
    array = jnp.arange(1000.0)
    array.block_until_ready()
    view = np.asarray(array)
    assert not view.flags.owndata
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    following = step(array)
    for _ in range(3):
        following = step(following)
    following.block_until_ready()
    np.testing.assert_array_equal(view, np.arange(1000.0))
    # Without a view, the step writes over it.
    place = following.unsafe_buffer_pointer()
    assert step(following).unsafe_buffer_pointer() == place
    assert following.is_deleted()


@pytest.mark.parametrize(
    "options", [{}, {"steps_per_execution": 2}, {"run_eagerly": True}], ids=str
)
def test_a_training_has_the_values_until_it_is_asked(options: dict[str, Any]) -> None:
    model = classifier(**options)
    told: list[Any] = []

    class Watch(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types.
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            with pytest.raises(ExportError, match="has no value now"):
                held_array(model.layers[0].kernel)
            steps = trained_steps(model)
            assert steps is not None
            synchronize(model)
            assert trained_steps(model) is None
            held = held_array(model.layers[0].kernel)
            np.testing.assert_array_equal(held, model.layers[0].kernel.value)
            told.append((int(steps), int(model.optimizer.iterations)))

    model.fit(*data(), batch_size=8, verbose=0, callbacks=[Watch()])
    every = options.get("steps_per_execution", 1)
    assert told == [(step, step) for step in range(every, 5, every)]
    assert trained_steps(model) is None


def test_the_steps_of_wrapped_optimizers_are_told_while_training() -> None:
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2)
    model = classifier(keras.optimizers.LossScaleOptimizer(optimizer))
    told: list[int] = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: told.append(int(trained_steps(model)))
    )
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[watch])
    assert told == [0, 1, 1, 2]


def test_an_array_that_a_step_took_is_told() -> None:
    variable = keras.Variable([1.0, 2.0], name="kernel")
    jax.jit(lambda x: x + 1, donate_argnums=0)(variable.value)
    with pytest.raises(ExportError, match=r"'kernel' has no value now.*variable\.assign\(value\)"):
        held_array(variable)


def test_keras_computes_attention_through_one_function() -> None:
    """`plain_attention` replaces it. A processor has no fused attention, so Keras raises."""
    query = keras.random.normal((2, 8, 4, 16))
    expected = keras.ops.dot_product_attention(query, query, query)
    for _ in range(2):
        with plain_attention():
            found = keras.ops.dot_product_attention(query, query, query, flash_attention=True)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        with pytest.raises((RuntimeError, NotImplementedError)):
            keras.ops.dot_product_attention(query, query, query, flash_attention=True)


def test_what_jit_returns_is_known() -> None:
    def plain(x: Any) -> Any:
        return x

    assert is_compiled(jax.jit(plain))
    assert is_compiled(jax.jit(plain, static_argnums=0))
    assert not is_compiled(plain)
    assert not is_compiled(keras.layers.Dense(1))


def test_a_scope_is_asked_for_each_variable_that_is_read_or_assigned() -> None:
    """The variables of an endpoint are found by this."""
    read, assigned = keras.Variable(1.0), keras.Variable(2.0)
    asked: list[Any] = []

    class Scope(keras.StatelessScope):  # type: ignore[misc]
        def get_current_value(self, variable: Any) -> Any:
            asked.append(variable)
            return super().get_current_value(variable)

        def add_update(self, update: Any) -> None:
            asked.append(update[0])
            super().add_update(update)

    with Scope():
        keras.ops.sin(read)
        assigned.assign(3.0)
    assert {id(variable) for variable in asked} == {id(read), id(assigned)}
    assert float(assigned.value) == 2.0
