"""State that is not a variable is exported as it is at the moment of the export."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.artifacts import assert_same_outputs, checkpoint
from support.processes import run_in_c

from keras_export_callbacks import ExportArchive
from keras_export_callbacks.archive.export_archive import registration_of
from keras_export_callbacks.archive.graph.plan import Planner

WORDS = tf.constant(["a", "b", "c"])
STRINGS = [tf.TensorSpec((None,), tf.string)]
FLOATS = [tf.TensorSpec((None, 2))]


def written(archive: ExportArchive, path: str = "artifact") -> Any:
    archive.write_out(path, verbose=False)
    return tf.saved_model.load(path)


def mutable() -> Any:
    return tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)


def dense() -> Any:
    return tf.lookup.experimental.DenseHashTable(
        tf.string, tf.int64, -1, empty_key="", deleted_key="-"
    )


def static() -> Any:
    initializer = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64))
    return tf.lookup.StaticHashTable(initializer, -1)


def insert(table: Any, words: list[str], values: list[int]) -> None:
    table.insert(tf.constant(words), tf.constant(values, tf.int64))


@pytest.mark.parametrize("make", [mutable, dense])
def test_a_mutable_table_is_exported_as_it_is_now(make: Callable[[], Any]) -> None:
    table, runs = make(), []

    def look_up(words: Any) -> Any:
        runs.append(words)
        return table.lookup(words)

    archive = ExportArchive()
    archive.add_endpoint("look_up", look_up, STRINGS)
    insert(table, ["a", "b"], [1, 2])
    assert written(archive).look_up(WORDS).numpy().tolist() == [1, 2, -1]
    insert(table, ["a", "c"], [7, 3])
    table.remove(tf.constant(["b"]))
    assert written(archive).look_up(WORDS).numpy().tolist() == [7, -1, 3]
    assert len(runs) == 1
    served = run_in_c(Path("artifact"), "look_up", {"words": np.array([b"a", b"c"])})
    assert served["output_0"].tolist() == [7, 3]


def test_an_unchanged_table_is_exported_again() -> None:
    table = mutable()
    insert(table, ["a"], [1])
    archive = ExportArchive()
    archive.add_endpoint("look_up", lambda words: table.lookup(words), STRINGS)
    for _ in range(3):
        assert written(archive).look_up(WORDS).numpy().tolist() == [1, -1, -1]


def test_a_table_and_variables_in_one_endpoint() -> None:
    table, scale = mutable(), tf.Variable(2, dtype=tf.int64)
    archive = ExportArchive()
    archive.add_endpoint("look_up", lambda words: scale * table.lookup(words), STRINGS)
    insert(table, ["b"], [5])
    written(archive)
    insert(table, ["c"], [6])
    scale.assign(3)
    assert written(archive).look_up(WORDS).numpy().tolist() == [-3, 15, 18]


@pytest.mark.parametrize(
    ("make", "before", "after", "inputs"),
    [
        (lambda: keras.layers.StringLookup(), ["a"], ["b", "c"], WORDS),
        (lambda: keras.layers.StringLookup(output_mode="tf_idf", max_tokens=9,
                                           pad_to_max_tokens=True), ["a"], ["b", "c", "c"], WORDS),
        (lambda: keras.layers.IntegerLookup(), [3], [4, 5], tf.constant([3, 4, 5], tf.int64)),
        (lambda: keras.layers.TextVectorization(), ["a"], ["b c"], WORDS),
        (lambda: keras.layers.Normalization(), [[1.0, 2.0]], [[5.0, 9.0], [1.0, 2.0]],
         tf.constant([[1.0, 2.0]])),
        (lambda: keras.layers.Discretization(num_bins=2), [[1.0, 2.0]], [[5.0, 9.0], [7.0, 8.0]],
         tf.constant([[1.0, 6.0]])),
    ],
    ids=["StringLookup", "tf_idf", "IntegerLookup", "TextVectorization", "Normalization",
         "Discretization"],
)  # fmt: skip
@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "found"])
def test_an_adapted_layer_is_exported_as_it_was_adapted_last(
    make: Callable[[], Any], before: Any, after: Any, inputs: Any, tracked: bool
) -> None:
    layer = make()
    layer.adapt(np.array(before))
    layer(inputs)
    archive = ExportArchive()
    if tracked:
        archive.track(layer)
    archive.add_endpoint("serve", lambda x: layer(x), [tf.TensorSpec(inputs.shape, inputs.dtype)])
    outputs = []
    for values in (before, after):
        layer.adapt(np.array(values))
        revived = written(archive)
        outputs.append(revived.serve(inputs))
        assert_same_outputs(outputs[-1], layer(inputs))
    assert not np.array_equal(*outputs)


def test_a_layer_that_stays_is_not_traced_again() -> None:
    lookup = keras.layers.StringLookup()
    lookup.adapt(np.array(["a", "b"]))
    model = keras.Sequential(
        [keras.Input((), dtype="string"), lookup, keras.layers.Embedding(4, 2)]
    )
    runs = []

    def serve(words: Any) -> Any:
        runs.append(words)
        return model(words)

    archive = ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", serve, STRINGS)
    written(archive)
    model.layers[-1].embeddings.assign(np.ones((4, 2)))
    model(WORDS)
    revived = written(archive)
    assert_same_outputs(revived.serve(WORDS), tf.ones((3, 2)))
    assert len(runs) == 1


def test_the_counts_of_an_adapt_are_not_exported() -> None:
    lookup = keras.layers.StringLookup()
    lookup.adapt(np.array(["a", "b"]))
    lookup(WORDS)
    archive = ExportArchive()
    archive.track_and_add_endpoint("serve", lookup, STRINGS)
    written(archive)
    assert checkpoint("artifact") == {}


def test_a_vocabulary_file_travels_with_every_artifact() -> None:
    Path("vocabulary.txt").write_text("b\na\n")
    layer = keras.layers.StringLookup(vocabulary="vocabulary.txt", num_oov_indices=0)
    layer(WORDS[:2])
    archive = ExportArchive()
    archive.track_and_add_endpoint("serve", layer, STRINGS)
    for path in ("first", "second"):
        archive.write_out(path, verbose=False)
    Path("vocabulary.txt").unlink()
    Path("first", "assets", "vocabulary.txt").unlink()
    Path("moved").mkdir()
    Path("second").rename("moved/second")
    revived = tf.saved_model.load("moved/second")
    assert revived.serve(WORDS[:2]).numpy().tolist() == [1, 0]


def test_a_tracked_asset_is_in_the_artifact() -> None:
    Path("labels.txt").write_text("cat\ndog\n")
    archive = ExportArchive()
    archive.track(tf.saved_model.Asset("labels.txt"))
    archive.add_endpoint("serve", lambda x: x, FLOATS)
    for path in ("first", "second"):
        written(archive, path)
        assert Path(path, "assets", "labels.txt").read_text() == "cat\ndog\n"


class Holder:
    """Holds a table, and looks up in it."""

    def __init__(self) -> None:
        self.table = static()

    def look_up(self, words: Any) -> Any:
        return self.table.lookup(words)


class Module(tf.Module):
    """Holds a table in a dict in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = [{"table": static()}]

    @tf.function
    def look_up(self, words: Any) -> Any:
        return self.tables[0]["table"].lookup(words)


TABLE = static()
MODULE = Module()  # Its functions refer to it weakly.


def with_comprehension(words: Any) -> Any:
    return [TABLE.lookup(word) for word in (words, words)][-1]


def with_default() -> Any:
    def helper(words: Any, *, table: Any = static()) -> Any:  # noqa: B008 (meant)
        return table.lookup(words)

    return lambda words: helper(words)


def closing_over() -> Any:
    table = static()
    inner = tf.function(lambda words: table.lookup(words))
    return functools.wraps(inner.python_function)(lambda words: inner(words))


@pytest.mark.parametrize(
    "fn",
    [
        Holder().look_up,
        MODULE.look_up,
        with_default(),
        with_comprehension,
        closing_over(),
        functools.partial(lambda table, words: table.lookup(words), static()),
    ],
    ids=["method", "module", "default", "comprehension", "closure", "partial"],
)
def test_a_table_is_found_wherever_the_endpoint_has_it_from(fn: Any) -> None:
    archive = ExportArchive()
    archive.add_endpoint("look_up", fn, STRINGS)
    assert written(archive).look_up(WORDS).numpy().tolist() == [1, 2, -1]


def test_a_random_generator_is_exported_with_its_state() -> None:
    generator = tf.random.Generator.from_seed(3)
    archive = ExportArchive()
    archive.add_endpoint("draw", lambda x: x + generator.normal((1, 2)), FLOATS)
    written(archive)
    generator.normal((4,))
    revived = written(archive)
    zeros = tf.zeros((1, 2))
    assert_same_outputs(revived.draw(zeros), generator.normal((1, 2)))


def test_a_revived_artifact_can_be_part_of_another() -> None:
    table = static()
    archive = ExportArchive()
    archive.add_endpoint("look_up", lambda words: table.lookup(words), STRINGS)
    layer = keras.layers.TFSMLayer("inner", "look_up") if written(archive, "inner") else None
    outer = ExportArchive()
    outer.track(layer)
    outer.add_endpoint("serve", lambda words: 10 * layer(words), STRINGS)
    assert written(outer).serve(WORDS).numpy().tolist() == [10, 20, -10]


def test_a_snapshot_tells_its_size() -> None:
    """Of variables and tables, also of those that grow, and of text."""
    numbers, halves = tf.Variable(tf.zeros((3, 5))), tf.Variable(tf.zeros((7,), tf.float16))
    growing = tf.Variable(tf.zeros((2,)), shape=(None,))
    text = tf.Variable(["a", "bc"])
    table = mutable()
    insert(table, ["abc", "d"], [1, 2])

    def read(words: Any) -> Any:
        return {
            "numbers": numbers + 0, "halves": halves + 0, "growing": growing + 0,
            "text": text[0], "found": table.lookup(words),
        }  # fmt: skip

    archive = ExportArchive()
    archive.add_endpoint("read", read, STRINGS)
    plan = Planner(registration_of(archive)).plan()
    string = 24
    variables = 15 * 4 + 7 * 2 + (2 * string + 3)
    assert plan.read().completed().size == variables + 2 * 4 + (2 * string + 4) + 2 * 8
    growing.assign(tf.zeros((1000,)))
    insert(table, ["efgh"], [3])
    assert plan.read().completed().size == variables + 1000 * 4 + (3 * string + 8) + 3 * 8
