"""The calls that have no public way: each test fails when TensorFlow or Keras moves one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import classifier, data

from keras_export_callbacks import ExportArchive, ExportError, standard_endpoints
from keras_export_callbacks._keras import infer_mode, validates_later
from keras_export_callbacks.archive._tensorflow import (
    OBJECT_GRAPH_KEY,
    AutoTrackable,
    Trackable,
    WithoutValues,
    argument_names,
    concrete_functions,
    fingerprint_for,
    replicas,
    saved_traces,
    signature_defs,
    state_keys,
)
from keras_export_callbacks.archive.graph._keras import fed_inputs

SPECS = [tf.TensorSpec((None,))]


def root(variables: list[Any] | None = None) -> Any:
    """What `tf.saved_model.save` takes, with a list of variables and an endpoint."""
    tracked = AutoTrackable()
    tracked.listed = variables or [tf.Variable(1.0), tf.Variable([2.0, 3.0])]
    tracked.serve = tf.function(lambda x: x + tracked.listed[0], input_signature=SPECS)
    return tracked


def test_any_attribute_of_an_auto_trackable_is_saved() -> None:
    saved = root()
    saved.variables = saved.listed
    tf.saved_model.save(saved, "saved")
    revived = tf.saved_model.load("saved")
    assert [variable.numpy().tolist() for variable in revived.variables] == [1.0, [2.0, 3.0]]


def test_what_can_be_tracked() -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)
    assert all(isinstance(item, Trackable) for item in (table, tf.Variable(1.0), tf.Module()))
    assert not isinstance("model", Trackable)


def test_traces_are_listed_oldest_first() -> None:
    function = tf.function(lambda x: x)
    assert concrete_functions(function) == []
    function(tf.ones((1, 2)))
    function(tf.ones((1, 3)))
    shapes = [
        trace.structured_input_signature[0][0].shape for trace in concrete_functions(function)
    ]
    assert shapes == [(1, 2), (1, 3)]


@pytest.mark.parametrize(
    "options",
    [
        None,
        tf.saved_model.SaveOptions(
            experimental_variable_policy=tf.saved_model.experimental.VariablePolicy.SAVE_VARIABLE_DEVICES
        ),
    ],
)
def test_saving_on_another_thread_does_not_trace_again(options: Any) -> None:
    runs = []

    def serve(x: Any) -> Any:
        runs.append(threading.current_thread())
        return x

    saved = AutoTrackable()
    saved.serve = tf.function(serve, input_signature=SPECS)
    (trace,) = saved_traces(saved.serve, options)
    arguments = {"signatures": {"serve": trace}, "options": options}
    thread = threading.Thread(target=tf.saved_model.save, args=(saved, "saved"), kwargs=arguments)
    thread.start()
    thread.join()
    assert runs == [threading.current_thread()]
    assert list(tf.saved_model.load("saved").serve(tf.ones(1)).numpy()) == [1.0]


def test_the_replicas_of_a_variable() -> None:
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        mirrored = tf.Variable(1.0)
    (replica,) = replicas(mirrored)
    function = tf.function(lambda: mirrored + 1.0, input_signature=[])
    (trace,) = saved_traces(function, None)
    assert trace.variables == (replica,)
    assert [handle is replica.handle for handle in trace.captured_inputs] == [True]
    assert list(replicas(tf.Variable(1.0))) == []


def test_signatures_are_read_out_of_a_saved_model() -> None:
    tf.saved_model.save(root(), "saved")
    signatures = signature_defs(Path("saved", "saved_model.pb").read_bytes())
    assert list(signatures) == ["serving_default"]
    assert list(signatures["serving_default"].inputs) == ["x"]


def test_every_key_of_a_checkpoint_is_told_by_its_object() -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)
    saved = root()
    saved.tables = [table]
    saved.look_up = tf.function(lambda words: table.lookup(words),
                                input_signature=[tf.TensorSpec((None,), tf.string)])  # fmt: skip
    tf.saved_model.save(saved, "saved")
    reader = tf.train.load_checkpoint("saved/variables/variables")
    object_graph = reader.get_tensor(OBJECT_GRAPH_KEY)
    keys = [of_one["VARIABLE_VALUE"] for of_one in state_keys(object_graph, "listed")]
    assert [reader.get_tensor(key).tolist() for key in keys] == [1.0, [2.0, 3.0]]
    ((of_table,),) = (of_one.values() for of_one in state_keys(object_graph, "tables"))
    listed = {name for name, _ in tf.train.list_variables("saved/variables/variables")}
    assert listed == {*keys, f"{of_table}-keys", f"{of_table}-values", OBJECT_GRAPH_KEY}


def test_a_fingerprint_is_what_tensorflow_writes_itself() -> None:
    variable = tf.Variable(1.0)
    saved = root([variable])
    tf.saved_model.save(saved, "first")
    variable.assign(2.0)
    tf.saved_model.save(saved, "second")
    first, second = (Path(path, "fingerprint.pb").read_bytes() for path in ("first", "second"))
    index = Path("second", "variables", "variables.index").read_bytes()
    theirs = tf.saved_model.experimental.read_fingerprint("second")
    assert fingerprint_for(second, index) == second
    Path("first", "fingerprint.pb").write_bytes(fingerprint_for(first, index))
    ours = tf.saved_model.experimental.read_fingerprint("first")
    assert ours.checkpoint_hash == theirs.checkpoint_hash
    assert ours.saved_model_checksum != 0


def mine(y_true: Any, y_pred: Any) -> Any:
    """A metric of one's own, of which Keras does not know what is better."""
    return keras.ops.mean(y_pred)


@pytest.fixture(scope="module")
def trained() -> Any:
    layers = [keras.Input((1,)), keras.layers.Dense(1, activation="sigmoid")]
    model = keras.Sequential(layers)
    metrics = ["accuracy", "mse", "mae", "auc", mine]
    model.compile("adam", "mse", metrics=metrics)
    model.fit(tf.ones((2, 1)), tf.ones((2, 1)), verbose=0)
    return model


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("accuracy", "max"),
        ("val_accuracy", "max"),
        ("auc", "max"),
        ("loss", "min"),
        ("val_loss", "min"),
        ("mse", "min"),
        ("val_mae", "min"),
    ],
)
def test_the_direction_of_a_metric(trained: Any, monitor: str, mode: str) -> None:
    assert infer_mode(monitor, trained) == mode


@pytest.mark.parametrize("monitor", ["mine", "val_mine", "nothing", "accurac"])
def test_a_direction_is_never_guessed(trained: Any, monitor: str) -> None:
    with pytest.raises(ExportError, match=rf"'{monitor}'.*mode='max'"):
        infer_mode(monitor, trained)


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_a_model_tells_the_batches_that_fit_feeds_it(steps_per_execution: int) -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    assert fed_inputs(model) is None
    model.compile("sgd", "mse", steps_per_execution=steps_per_execution)
    model.fit(np.ones((4, 3), "uint8"), np.ones((4, 1)), batch_size=2, verbose=0)
    assert fed_inputs(model) == tf.TensorSpec((2, 3), "uint8")


def test_eager_training_tells_no_batches() -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(np.ones((4, 3), "uint8"), np.ones((4, 1)), batch_size=2, verbose=0)
    assert fed_inputs(model) is None


def test_a_graph_is_saved_without_values() -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)
    saved, left_out = root(), WithoutValues()
    saved.table = table
    options = tf.saved_model.SaveOptions(experimental_sharding_callback=left_out)
    tf.saved_model.save(saved, "saved", options=options)
    tf.saved_model.save(saved, "usual")
    described, usual = (
        tf.train.load_checkpoint(f"{name}/variables/variables") for name in ("saved", "usual")
    )
    assert set(described.get_variable_to_shape_map()) == {OBJECT_GRAPH_KEY}
    assert set(usual.get_variable_to_shape_map()) == {OBJECT_GRAPH_KEY} | left_out.keys
    assert {
        "listed/0/.ATTRIBUTES/VARIABLE_VALUE",
        "listed/1/.ATTRIBUTES/VARIABLE_VALUE",
    } < left_out.keys
    assert described.get_tensor(OBJECT_GRAPH_KEY) == usual.get_tensor(OBJECT_GRAPH_KEY)


@pytest.mark.parametrize("is_refused", [False, True])
def test_what_is_left_out_when_a_graph_is_saved_is_in_the_version(
    is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a TensorFlow that insists on all values."""
    asked = []

    def call(self: WithoutValues, shardable_tensors: Any) -> Any:
        asked.append(len(shardable_tensors))
        if is_refused:
            raise RuntimeError("Tensors must not be removed.")
        return leave_out(self, shardable_tensors)

    leave_out = WithoutValues.__call__
    monkeypatch.setattr(WithoutValues, "__call__", call)
    x, y = data()
    model = classifier()
    model.fit(x, y, verbose=0)
    archive = ExportArchive()
    standard_endpoints(archive, model)
    archive.write_out("artifact", verbose=False)
    artifact = tf.saved_model.load("artifact")
    np.testing.assert_allclose(artifact.serve(x), model.predict(x, verbose=0), rtol=1e-5)
    assert len(asked) == 1


def test_a_trace_tells_the_names_that_its_signature_will_have() -> None:
    specs = [tf.TensorSpec((None,), name="x_0"), tf.TensorSpec((None,), name="y")]
    module = tf.Module()
    module.serve = tf.function(lambda *x: x[0] - x[1], input_signature=specs)
    trace = module.serve.get_concrete_function()
    assert argument_names(trace) == ["x_0", "y"]
    tf.saved_model.save(module, "saved", signatures=trace)
    served = signature_defs(Path("saved", "saved_model.pb").read_bytes())["serving_default"]
    assert set(served.inputs) == {"x_0", "y"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [False, False, False]),
        ({"validation_split": 0.5}, [True, True, False]),
        ({"validation_split": 0.5, "validation_freq": 2}, [True, False, False]),
        ({"validation_data": data(), "validation_freq": [3]}, [True, True, False]),
    ],
)
def test_fit_tells_whether_it_validates_later(options: Any, expected: list[bool]) -> None:
    told = []
    model = classifier()
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: told.append(validates_later(model, epoch))
    )
    x, y = data()
    model.fit(x, y, epochs=3, verbose=0, callbacks=[watch], **options)
    assert told == expected
    assert not validates_later(model, 0)
