"""What is written on JAX: each kind of model, read by TensorFlow in Python and in C."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
from support.artifacts import (
    assert_same_outputs,
    checkpoint,
    elements,
    stored_elements,
)
from support.cases import mostly_zoo
from support.kinds import KINDS
from support.models import assert_equal_state, classifier, data, state
from support.processes import run_python

from keras_export_callbacks import ExportArchive, standard_endpoints

# Keras itself has no text on JAX.
KINDS_ON_JAX = sorted(KINDS.keys() - {"TextVectorization", "StringLookup"})

BATCH = data(5)[0]

# Runs artifacts where JAX cannot be imported, in TensorFlow's C library.
IN_C = """
import sys
sys.modules["jax"] = sys.modules["jaxlib"] = None
import numpy as np
from keras_export_callbacks.archive.parity.c_library import Session
for path in sys.argv[1:]:
    with np.load(f"{path}.npz") as inputs:
        np.savez(f"{path}.outputs.npz", **Session(path).run("serve", dict(inputs)))
assert "tensorflow" not in sys.modules
"""

# The same in Python, for any batch size.
IN_PYTHON = """
import sys
sys.modules["jax"] = sys.modules["jaxlib"] = None
import numpy as np, tensorflow as tf
revived = tf.saved_model.load(sys.argv[1])
for rows in (1, 4):
    print(revived.serve(tf.ones((rows, int(sys.argv[2])))).shape)
assert "keras_export_callbacks" not in sys.modules
"""


@functools.cache
def written(kind: str) -> tuple[Any, Any, str]:
    """A model of a kind, inputs, and the path of its artifact."""
    path = Path(tempfile.mkdtemp(), "artifact")
    model, inputs = KINDS[kind].build()
    archive = ExportArchive()
    standard_endpoints(archive, model)
    archive.write_out(path, verbose=False)
    return model, inputs, str(path)


def operations(function: Any) -> list[str]:
    """The types of all operations in a loaded function."""
    graph = function.concrete_functions[0].graph.as_graph_def()
    inner = [node for item in graph.library.function for node in item.node_def]
    return [node.op for node in [*graph.node, *inner]]


def named(inputs: Any, path: str) -> dict[str, Any]:
    """Inputs by the names in the signature."""
    if isinstance(inputs, dict):
        return inputs
    (name,) = tf.saved_model.load(path).signatures["serve"].structured_input_signature[1]
    return {name: inputs}


@pytest.mark.parametrize(
    "kind",
    mostly_zoo(KINDS_ON_JAX, "LSTM", "Transformer block", "subclassed", "mixed_bfloat16", "int8"),
)
def test_an_artifact_computes_what_the_model_does(kind: str) -> None:
    model, inputs, path = written(kind)
    revived = tf.saved_model.load(path)
    outputs = revived.serve(inputs)
    with jax.default_matmul_precision("highest"):  # A GPU rounds the factors otherwise.
        live = model(inputs, training=False)
    tf.nest.map_structure(assert_close, outputs, live)
    found = operations(revived.serve)
    assert found.count("XlaCallModule") == 1
    assert not [operation for operation in found if "Assign" in operation]
    if kind == "int8":
        return  # Its optimizer still holds the weights from before.
    everything = {id(v): v for v in [*model.variables, *model.optimizer.variables]}
    # What a recurrent layer counts its draws with is in no list of the model.
    counts = [v for v in checkpoint(path).values() if v.dtype == "uint32" and v.shape == (2,)]
    listed = [v for v in everything.values() if "seed_generator_state" in v.path]
    hidden = 2 * (len(counts) - len(listed))
    assert stored_elements(path) == elements(list(everything.values())) + hidden


def assert_close(ours: Any, theirs: Any) -> None:
    theirs = np.asarray(theirs)
    assert ours.dtype.as_numpy_dtype == theirs.dtype
    assert_same_outputs(ours, tf.constant(theirs))


def test_the_c_library_computes_the_same_without_jax() -> None:
    paths = []
    for kind in KINDS_ON_JAX:
        _, inputs, path = written(kind)
        paths.append(path)
        np.savez(f"{path}.npz", **named(inputs, path))
    run_python(IN_C, *paths, KERAS_BACKEND="tensorflow")
    for kind, path in zip(KINDS_ON_JAX, paths, strict=True):
        _, inputs, _ = written(kind)
        in_python = tf.saved_model.load(path)
        tensors = {name: tf.constant(value) for name, value in named(inputs, path).items()}
        expected = in_python.signatures["serve"](**tensors)
        with np.load(f"{path}.outputs.npz") as outputs:
            assert outputs.keys() == expected.keys()
            for name, output in outputs.items():
                same = np.frombuffer(output.tobytes(), expected[name].dtype.as_numpy_dtype)
                np.testing.assert_array_equal(same, expected[name].numpy().ravel())


def test_tensorflow_loads_it_without_jax_and_serves_any_batch() -> None:
    _, _, path = written("dense")
    assert run_python(IN_PYTHON, path, "4", KERAS_BACKEND="tensorflow") == "(1, 3)\n(4, 3)\n"


@pytest.fixture(scope="module")
def trained() -> Any:
    model = classifier()
    model.fit(*data(), verbose=0)
    return model


def archive_of(model: Any) -> ExportArchive:
    archive = ExportArchive()
    standard_endpoints(archive, model)
    return archive


def test_the_lists_of_variables_have_the_values_of_the_model(trained: Any) -> None:
    archive_of(trained).write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    for name in ("variables", "trainable_variables", "non_trainable_variables"):
        live = [np.asarray(variable.value) for variable in getattr(trained, name)]
        assert_equal_state([variable.numpy() for variable in getattr(revived, name)], live)
    live = [np.asarray(variable.value) for variable in trained.optimizer.variables]
    assert_equal_state([variable.numpy() for variable in revived.optimizer_variables], live)


def test_a_loaded_training_mode_drops_out_and_moves_statistics_and_seeds(trained: Any) -> None:
    archive_of(trained).write_out("artifact", verbose=False)
    revived = tf.saved_model.load("artifact")
    weights = [variable.numpy() for variable in revived.trainable_variables]
    others = [variable.numpy() for variable in revived.non_trainable_variables]
    first, second = revived.call_training(BATCH), revived.call_training(BATCH)
    assert not np.array_equal(first, second)
    assert_equal_state([v.numpy() for v in revived.trainable_variables], weights)
    for variable, then in zip(revived.non_trainable_variables, others, strict=True):
        assert not np.array_equal(variable.numpy(), then)
    # The model draws the same numbers, and moves its statistics to the same values.
    assert_same_outputs(first, tf.constant(np.asarray(trained(BATCH, training=True))))
    assert_same_outputs(second, tf.constant(np.asarray(trained(BATCH, training=True))))
    for variable, theirs in zip(
        trained.non_trainable_variables, revived.non_trainable_variables, strict=True
    ):
        np.testing.assert_allclose(variable.value, theirs.numpy(), rtol=1e-6)


def test_no_variable_is_part_of_the_graph() -> None:
    layer = keras.layers.Dense(1000)
    model = keras.Sequential([keras.Input((1000,)), layer])
    archive = archive_of(model)
    archive.write_out("first", verbose=False)
    assert os.path.getsize("first/saved_model.pb") < 100_000
    layer.set_weights([np.full((1000, 1000), 2.0), np.ones(1000)])
    archive.write_out("second", verbose=False)
    graphs = [Path(path, "saved_model.pb").stat().st_ino for path in ("first", "second")]
    assert graphs[0] == graphs[1]
    revived = tf.saved_model.load("second")
    np.testing.assert_array_equal(revived.serve(tf.ones((2, 1000))), np.full((2, 1000), 2001.0))


def test_exports_leave_the_model_as_it_is(trained: Any) -> None:
    before = state(trained)
    archive = archive_of(trained)
    for path in ("first", "second"):
        archive.write_out(path, verbose=False)
    assert_equal_state(state(trained), before)
    trained.fit(*data(), verbose=0)
    archive.write_out("first", verbose=False)
    revived = tf.saved_model.load("first")
    assert_same_outputs(revived.serve(BATCH), tf.constant(np.asarray(trained(BATCH))))
