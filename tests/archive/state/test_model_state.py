"""`restore` puts back what `model.variables` lacks, and names what it cannot."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.restoring import X, model_of, normalized, version_of
from support.stateful_layers import Keeping
from support.versions import sign

from keras_export_callbacks import ExportArchive, Exporter, ExportError, restore

VARIABLES = "assets.extra/variables.json"
LAYERS = "assets.extra/layers.json"


def test_the_states_of_recurrent_layers_are_put_back() -> None:
    def build() -> Any:
        keras.utils.set_random_seed(3)
        return model_of(keras.layers.GRU(2, stateful=True), shape=(2, 1), batch=4)

    first, live = build(), build()
    x = X[..., None]
    first(x)
    restore(live, version_of(first))
    np.testing.assert_array_equal(live(x), first(x))
    assert np.any(live.layers[0].states[0])


def test_variables_tables_and_generators_in_layers_are_put_back() -> None:
    first, live = model_of(Keeping(0)), model_of(Keeping(1))
    restore(live, version_of(first))
    np.testing.assert_array_equal(live(X), first(X))
    assert live.layers[0].unread.numpy() == 0  # No endpoint reads it.
    assert live.layers[0].table.size() == 3


class Holding(keras.Layer):
    """Holds one more thing."""

    def __init__(self, held: Any = None) -> None:
        super().__init__(name="holding")
        self.held = held

    def call(self, x: Any) -> Any:
        return x


def test_what_the_model_has_no_place_for_is_named() -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    version = version_of(model_of(Holding([tf.Variable([1.0]), {"words": table}])))
    with pytest.warns(UserWarning, match="Not everything") as warned:
        restore(model_of(Holding()), version)
    (message,) = (str(item.message) for item in warned)
    assert re.search(r"layers/0/held/0 float32\[1\] has no match in the model", message)
    assert "the table layers/0/held/1/words has no match in the model" in message


@pytest.mark.parametrize(
    ("held", "live"),
    [
        (lambda: tf.Variable([1.0]), lambda: tf.Variable([1.0, 2.0])),
        (lambda: tf.Variable(1.0), lambda: tf.Variable(1)),
        (
            lambda: tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1),
            lambda: tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1),
        ),
        (
            lambda: tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, [0, 0]),
            lambda: tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, [0, 0, 0]),
        ),
    ],
    ids=["shape", "dtype", "keys", "values"],
)
def test_what_the_model_has_another_kind_of_is_named(
    held: Callable[[], Any], live: Callable[[], Any]
) -> None:
    version = version_of(model_of(Holding(held())))
    with pytest.warns(UserWarning, match=r"layers/0/held.* has no match in the model"):
        restore(model_of(Holding(live())), version)


def test_a_variable_of_any_shape_is_put_back() -> None:
    def build(value: Any) -> Any:
        return model_of(Holding(tf.Variable(value, shape=tf.TensorShape(None))))

    first, live = build([1.0]), build(7.0)
    with Exporter("base", first, log_dir=None, background=False) as exporter:
        exporter.export().result()
        first.layers[0].held.assign([[2.0, 3.0]])
        restore(live, exporter.export().result().path)
    assert live.layers[0].held.numpy().tolist() == [[2.0, 3.0]]


def test_what_the_version_lacks_is_named() -> None:
    version = version_of(model_of(Holding()))
    with pytest.warns(UserWarning, match="layers/0/held is in the model, but not in the version"):
        restore(model_of(Holding(tf.Variable(1.0))), version)


def test_what_only_an_endpoint_holds_is_named() -> None:
    scale = tf.Variable(2.0, name="scale")
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)

    def endpoints(archive: ExportArchive, model: Any) -> None:
        archive.track(model)
        archive.add_endpoint(
            "serve",
            lambda x: scale * model(x) + table.lookup(tf.cast(x, tf.int64)),
            [tf.TensorSpec((None, 2))],
        )
        archive.add_variable_collection("optimizer_variables", model.optimizer.variables)
        archive.add_variable_collection("averages", [tf.Variable(1.0, name="average")])

    model = model_of(keras.layers.Dense(2))
    with pytest.warns(UserWarning, match="Not everything") as warned:
        restore(model, version_of(model, endpoints=endpoints))
    (message,) = (str(item.message) for item in warned)
    for name in ("scale:0 float32[]", "average:0 float32[]", "MutableHashTable"):
        assert re.search(rf"{re.escape(name)}.* is not part of the model", message)


def test_a_long_list_is_cut() -> None:
    version = version_of(model_of(Holding()))
    with pytest.warns(UserWarning, match="and 2 more") as warned:
        restore(model_of(Holding([tf.Variable(1.0) for _ in range(12)])), version)
    assert str(warned[0].message).count("layers/0/held") == 10


def older(version: Path) -> Path:
    """The version as it was written before there was an index of other state."""
    index = json.loads((version / VARIABLES).read_text())
    old = {name: infos for name, infos in index.items() if not name.startswith("_")}
    (version / VARIABLES).unlink()  # It is linked from elsewhere.
    (version / VARIABLES).write_text(json.dumps(old))
    (version / LAYERS).unlink()
    sign(version, VARIABLES, without=[LAYERS])
    return version


def test_a_version_written_before_is_restored_and_what_it_lacks_is_named() -> None:
    def build(words: list[str]) -> Any:
        lookup = keras.layers.StringLookup(vocabulary=words, name="lookup")
        layers = [lookup, keras.layers.Embedding(4, 2), keras.layers.GRU(2, stateful=True)]
        return model_of(*layers, shape=(3,), batch=2, dtype="string")

    model, live = build(["a", "b"]), build(["b", "a"])
    version = older(version_of(model))
    with pytest.warns(UserWarning, match="Not everything") as warned:
        restore(live, version)
    (message,) = (str(item.message) for item in warned)
    assert "layers/2/states/0 is in the model, but not in the version" in message
    assert "layer 'lookup' (layers/0) keeps its vocabulary, which the version lacks" in message
    for ours, theirs in zip(live.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_version_written_before_without_such_state_is_restored_silently() -> None:
    model, live = (model_of(normalized(scale), keras.layers.Dense(1)) for scale in (1.0, 5.0))
    restore(live, older(version_of(model)))
    np.testing.assert_array_equal(live(X), model(X))


def test_readers_of_before_find_lists_of_variables_only() -> None:
    version = version_of(model_of(Keeping(0), keras.layers.Dense(1)))
    index = json.loads((version / VARIABLES).read_text())
    assert all(isinstance(infos, list) for infos in index.values())
    fields = {tuple(info) for infos in index.values() for info in infos}
    assert fields == {("path", "shape", "dtype", "key")}


def test_a_damaged_index_of_layers_is_refused() -> None:
    model = model_of(normalized(1.0))
    version = version_of(model)
    (version / LAYERS).unlink()
    (version / LAYERS).write_text('{"layers/0": 3}')
    sign(version, LAYERS)
    with pytest.raises(ExportError, match=r"layers\.json' cannot be used"):
        restore(model, version)
