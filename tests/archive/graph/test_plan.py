"""The traced graph is used again, and traced again exactly when it must be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.artifacts import assert_same_artifact, assert_same_outputs, elements, shards
from support.models import FEATURES, classifier, data

from keras_export_callbacks import ExportArchive
from keras_export_callbacks.archive._tensorflow import fingerprint_for

SPECS = [tf.TensorSpec((None, FEATURES))]
BATCH = data(3)[0]


# Keras quantizes through NumPy's old protocol.
KERAS_COPIES = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Counted:
    """An archive of a model whose endpoint counts how often Python runs it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.runs = 0
        self.archive = ExportArchive()
        self.archive.track(model)
        self.archive.add_endpoint("serve", self.serve, SPECS)

    def serve(self, x: Any) -> Any:
        self.runs += 1
        return self.model(x, training=False)

    def write_out(self, path: str = "artifact", options: Any = None) -> None:
        self.archive.write_out(path, options=options, verbose=False)


@pytest.fixture
def counted() -> Counted:
    counted = Counted(classifier())
    counted.write_out("first")
    assert counted.runs == 1
    return counted


def fresh(model: Any, path: str) -> None:
    """What an archive that knows nothing writes of `model`."""
    Counted(model).write_out(path)


def test_python_runs_once_however_often_it_is_written(counted: Counted) -> None:
    for _ in range(3):
        counted.model.fit(*data(), verbose=0)
        counted.write_out()
    assert counted.runs == 1
    assert_served_by_all(counted.model, "artifact")


def assert_served_by_all(model: Any, path: str) -> None:
    revived = tf.saved_model.load(path)
    assert_same_outputs(revived.serve(BATCH), model(BATCH))


def test_the_second_artifact_is_what_a_full_save_would_be(counted: Counted) -> None:
    model = counted.model
    model.fit(*data(), verbose=0)
    counted.archive.add_variable_collection("optimizer", model.optimizer.variables)
    counted.write_out("second")
    model.fit(*data(), verbose=0)
    counted.write_out("third")
    assert counted.runs == 1
    full = Counted(model)
    full.archive.add_variable_collection("optimizer", model.optimizer.variables)
    full.write_out("full")
    assert_same_artifact("third", "full")


def test_a_fingerprint_tells_its_own_checkpoint(counted: Counted) -> None:
    counted.model.layers[0].bias.assign_add(np.ones(8))
    counted.write_out("second")
    for path in ("first", "second"):
        fingerprint = Path(path, "fingerprint.pb").read_bytes()
        index = Path(path, "variables", "variables.index").read_bytes()
        assert fingerprint_for(fingerprint, index) == fingerprint
    hashes = {
        tf.saved_model.experimental.read_fingerprint(path).checkpoint_hash
        for path in ("first", "second")
    }
    assert len(hashes) == 2


def freeze(counted: Counted) -> None:
    counted.model.layers[0].trainable = False


def freeze_all(counted: Counted) -> None:
    counted.model.trainable = False


def adapt_in_low_rank(counted: Counted) -> None:
    counted.model.layers[0].enable_lora(2)
    counted.model.layers[0].lora_kernel_b.assign(np.ones((2, 8)))


def quantize(counted: Counted) -> None:
    counted.model.layers[0].quantize("int8")


def add_a_layer_with_variables(counted: Counted) -> None:
    counted.model.add(keras.layers.Dense(2))


def add_a_layer_without_variables(counted: Counted) -> None:
    counted.model.add(keras.layers.Rescaling(2.0))


def track_a_table(counted: Counted) -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    counted.archive.track(table)


def track_a_layer(counted: Counted) -> None:
    layer = keras.layers.Dense(1)
    layer.build((None, 2))
    counted.archive.track(layer)


@pytest.mark.parametrize(
    "change",
    [
        freeze,
        freeze_all,
        adapt_in_low_rank,
        pytest.param(quantize, marks=KERAS_COPIES),
        add_a_layer_with_variables,
        add_a_layer_without_variables,
        track_a_table,
        track_a_layer,
    ],
)
def test_it_is_traced_again_after(change: Callable[[Counted], None], counted: Counted) -> None:
    change(counted)
    counted.write_out()
    assert counted.runs == 2
    assert_served_by_all(counted.model, "artifact")
    counted.write_out()
    assert counted.runs == 2


def test_the_variables_of_an_untracked_model_are_watched_too() -> None:
    model = classifier(compiled=False)
    archive = ExportArchive()
    archive.add_endpoint("serve", lambda x: model(x, training=False), SPECS)
    archive.write_out("artifact", verbose=False)
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(np.ones((2, 8)))
    archive.write_out("artifact", verbose=False)
    assert_served_by_all(model, "artifact")


def test_a_frozen_batch_normalization_is_frozen_in_training_mode_too() -> None:
    model = classifier(compiled=False)
    archive = ExportArchive()
    archive.add_endpoint("call_training", lambda x: model.layers[1](x, training=True),
                         [tf.TensorSpec((None, 8))])  # fmt: skip
    archive.write_out("before", verbose=False)
    model.trainable = False
    archive.write_out("after", verbose=False)
    ones = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    before, after = tf.saved_model.load("before"), tf.saved_model.load("after")
    assert not np.allclose(before.call_training(ones), after.call_training(ones))
    assert_same_outputs(after.call_training(ones), model.layers[1](ones, training=True))


def test_only_a_new_endpoint_is_traced(counted: Counted) -> None:
    counted.archive.add_endpoint("logits", lambda x: counted.model(x), SPECS)
    counted.write_out()
    assert counted.runs == 1
    revived = tf.saved_model.load("artifact")
    assert set(revived.signatures) == {"serve", "logits", "serving_default"}
    assert_same_outputs(revived.logits(BATCH), revived.serve(BATCH))


def test_changed_collections_are_saved_without_tracing(counted: Counted) -> None:
    for values in ([1.0], [2.0, 3.0]):
        variables = [tf.Variable(value) for value in values]
        counted.archive.add_variable_collection("extra", variables)
        counted.write_out()
        revived = tf.saved_model.load("artifact")
        assert [variable.numpy() for variable in revived.extra] == values
    assert counted.runs == 1


def test_a_collection_is_what_the_list_holds_when_it_is_written(counted: Counted) -> None:
    variables = [keras.Variable(1.0)]
    counted.archive.add_variable_collection("extra", variables)
    counted.write_out()
    variables.append(tf.Variable(2.0))
    counted.write_out()
    revived = tf.saved_model.load("artifact")
    assert [variable.numpy() for variable in revived.extra] == [1.0, 2.0]
    assert counted.runs == 1


def test_what_is_added_to_a_list_must_be_a_variable(counted: Counted) -> None:
    variables: list[Any] = [tf.Variable(1.0)]
    counted.archive.add_variable_collection("extra", variables)
    variables.append(tf.constant(1.0))
    with pytest.raises(ValueError, match=r"EagerTensor.* in collection 'extra'. Expected Keras or"):
        counted.write_out()


def test_a_variable_frozen_by_itself_changes_list_only(counted: Counted) -> None:
    counted.model.layers[0].kernel.trainable = False
    counted.write_out()
    revived = tf.saved_model.load("artifact")
    expected = [tuple(variable.shape) for variable in counted.model.trainable_variables]
    assert [tuple(variable.shape) for variable in revived.trainable_variables] == expected
    assert counted.runs == 1


def test_changed_options_are_saved(counted: Counted) -> None:
    debug_info = Path("artifact", "debug", "saved_model_debug_info.pb")
    options = tf.saved_model.SaveOptions(save_debug_info=False)
    counted.write_out(options=options)
    assert not debug_info.exists()
    options.save_debug_info = True  # The same object says something else now.
    counted.write_out(options=options)
    assert debug_info.exists()
    counted.write_out(options=tf.saved_model.SaveOptions(save_debug_info=True))
    assert debug_info.exists()
    assert counted.runs == 1
    counted.write_out()
    assert not debug_info.exists()


def test_an_alias_names_the_endpoint_that_was_traced_again(counted: Counted) -> None:
    archive = ExportArchive()
    layer = keras.layers.Dense(1)
    layer.build((None, FEATURES))
    serve = archive.track_and_add_endpoint("serve", layer, SPECS)
    options = tf.saved_model.SaveOptions(function_aliases={"alias": serve})
    archive.write_out("artifact", options, verbose=False)
    layer.trainable = False
    archive.write_out("artifact", options, verbose=False)
    load = tf.saved_model.LoadOptions(experimental_load_function_aliases=True)
    revived = tf.saved_model.load("artifact", options=load)
    assert_same_outputs(revived.function_aliases["alias"](BATCH), layer(BATCH))


@pytest.mark.parametrize("nothing", ["training", "calling", "evaluating", "compiling"])
def test_it_is_not_traced_again_after(nothing: str, counted: Counted) -> None:
    model = counted.model
    if nothing == "training":
        model.fit(*data(), verbose=0)
    elif nothing == "calling":
        model(BATCH, training=True)
    elif nothing == "evaluating":
        model.evaluate(*data(), verbose=0)
    else:
        model.compile("sgd", "mse", metrics=["mae"])
    counted.write_out()
    assert counted.runs == 1


def test_what_did_not_change_is_linked_and_every_artifact_complete(counted: Counted) -> None:
    model = counted.model
    for path in ("second", "third"):
        model.layers[-1].bias.assign_add(np.ones(3))
        counted.write_out(path)
    before, after = shards("second"), shards("third")
    linked = {inode: size for inode, size in after.items() if inode in before}
    written = {inode: size for inode, size in after.items() if inode not in before}
    assert sum(linked.values()) >= 4 * (elements(model.variables) - 3)
    assert list(written.values()) == [4 * 3]
    fresh(model, "full")
    assert_same_artifact("third", "full")


def test_without_a_change_every_shard_is_linked(counted: Counted) -> None:
    counted.write_out("second")
    assert shards("second") == shards("first")
    inode = Path("first", "saved_model.pb").stat().st_ino
    assert Path("second", "saved_model.pb").stat().st_ino == inode


def test_an_artifact_outlives_the_others(counted: Counted) -> None:
    counted.write_out("second")
    shutil.rmtree("first")
    assert_served_by_all(counted.model, "second")
    shutil.rmtree("second")
    counted.write_out("third")
    assert counted.runs == 1
    assert_served_by_all(counted.model, "third")
    fresh(counted.model, "full")
    assert_same_artifact("third", "full")


def test_a_file_of_the_last_artifact_that_was_changed_is_not_linked(counted: Counted) -> None:
    data_files = Path("first", "variables").glob("variables.data-*")
    for path in (*data_files, Path("first", "saved_model.pb")):
        path.write_bytes(b"damaged")
    counted.write_out("second")
    assert_served_by_all(counted.model, "second")
    assert not set(shards("first")) & set(shards("second"))
