"""Mistakes raise an `ExportError` that is also what `keras.export.ExportArchive` raises."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.models import IS_OLD_KERAS

from keras_export_callbacks import ExportArchive, ExportError

SPECS = [tf.TensorSpec((None, 3))]


def dense() -> Any:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


def add(archive: Any, fn: Any, signature: Any = SPECS) -> None:
    archive.add_endpoint("serve", fn, signature)
    archive.write_out("artifact", verbose=False)


def add_twice(archive: Any) -> None:
    for _ in range(2):
        archive.add_endpoint("serve", lambda x: x, SPECS)


def use_an_unfindable_table(archive: Any) -> None:
    class Holder:
        pass

    outer = Holder()
    outer.inner = Holder()  # type: ignore[attr-defined]
    initializer = tf.lookup.KeyValueTensorInitializer(["a"], [1.0])
    outer.inner.table = tf.lookup.StaticHashTable(initializer, 0.0)  # type: ignore[attr-defined]
    fn = lambda x: outer.inner.table.lookup(x)  # type: ignore[attr-defined]  # noqa: E731
    add(archive, fn, [tf.TensorSpec((None,), tf.string)])


MISTAKES: dict[str, Callable[[Any], Any]] = {
    "track an unbuilt layer": lambda archive: archive.track(keras.layers.Dense(2)),
    "track a string": lambda archive: archive.track("model"),
    "track None": lambda archive: archive.track(None),
    "track a function": lambda archive: archive.track(len),
    "track and add an unbuilt layer": lambda archive: archive.track_and_add_endpoint(
        "serve", keras.layers.Dense(2), SPECS
    ),
    "track and add what cannot be called": lambda archive: archive.track_and_add_endpoint(
        "serve", tf.Variable(1.0), SPECS
    ),
    "a name that is taken": add_twice,
    "a name that is no string": lambda archive: archive.add_endpoint(3, len, SPECS),
    "options of JAX": lambda archive: archive.add_endpoint("a", len, SPECS, is_static=True),
    "no signature": lambda archive: archive.add_endpoint("serve", lambda x: x),
    "no signature and no function": lambda archive: archive.add_endpoint("serve", 3),
    "no function": lambda archive: archive.add_endpoint("serve", 3, SPECS),
    "a function never called": lambda archive: archive.add_endpoint("a", tf.function(len)),
    "a signature that is no list": lambda archive: add(archive, lambda x: x, SPECS[0]),
    "a signature that is a dict": lambda archive: add(archive, lambda x: x, {"x": SPECS[0]}),
    "a spec that is none": lambda archive: add(archive, lambda x: x, [(None, 3)]),
    "an array for a spec": lambda archive: add(archive, lambda x: x, [np.ones(3)]),
    "a spec without a shape": lambda archive: add(archive, lambda x: x, [keras.InputSpec(ndim=2)]),
    "a spec without a dtype": lambda archive: add(
        archive, lambda x: x, [keras.InputSpec(shape=(None, 3))]
    ),
    "too few specs": lambda archive: add(archive, lambda x, y: x + y),
    "too many specs": lambda archive: add(archive, lambda: tf.ones(1)),
    "a spec of another shape": lambda archive: add(archive, dense(), [tf.TensorSpec((None, 4))]),
    "a dict for a tensor": lambda archive: add(archive, lambda x: x.shape, [{"x1": SPECS[0]}]),
    "a tensor for a dict": lambda archive: add(archive, lambda x: x["x1"]),
    "a key that is not there": lambda archive: add(archive, lambda x: x["y"], [{"x": SPECS[0]}]),
    "an output that is None": lambda archive: add(archive, lambda x: None),
    "an output without a name": lambda archive: add(archive, lambda x: {1: x}),
    "a variable made in the function": lambda archive: add(archive, lambda x: tf.Variable(1.0) + x),
    "a table nobody can find": use_an_unfindable_table,
    "a collection that is a dict": lambda archive: archive.add_variable_collection("a", {}),
    "a collection of other things": lambda archive: archive.add_variable_collection("a", [1.0]),
    "a collection's name that is no string": lambda archive: archive.add_variable_collection(3, []),
    "no endpoints": lambda archive: archive.write_out("artifact"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_raise_what_keras_raises(mistake: str) -> None:
    if mistake == "track and add what cannot be called" and IS_OLD_KERAS:
        pytest.skip("Keras's archive raised something else")
    with pytest.raises(Exception) as keras_raised:  # noqa: PT011 (whatever it is)
        MISTAKES[mistake](keras.export.ExportArchive())
    with pytest.raises(keras_raised.type) as raised:
        MISTAKES[mistake](ExportArchive())
    assert isinstance(raised.value, ExportError)


def test_an_unknown_format_is_refused() -> None:
    assert ExportArchive(format="saved_model").variables == []
    with pytest.raises(ExportError, match="other") as raised:
        ExportArchive(format="other")
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("name", ["two words", "", "1st", "a/b", "_private", "variables"])
def test_names_that_cannot_be_attributes_are_refused(name: str) -> None:
    archive = ExportArchive()
    for register in (
        lambda: archive.add_endpoint(name, lambda x: x, SPECS),
        lambda: archive.add_variable_collection(name, []),
    ):
        with pytest.raises(ExportError, match=re.escape(repr(name))) as raised:
            register()
        assert isinstance(raised.value, ValueError)


def test_an_endpoint_and_a_collection_cannot_share_a_name() -> None:
    archive = ExportArchive()
    archive.add_endpoint("endpoint", lambda x: x, SPECS)
    archive.add_variable_collection("collection", [])
    for register in (
        lambda: archive.add_endpoint("collection", lambda x: x, SPECS),
        lambda: archive.add_variable_collection("endpoint", []),
    ):
        with pytest.raises(ExportError, match="already taken"):
            register()


@pytest.mark.parametrize("signature", [[], 4 * SPECS, [{"a": SPECS[0]}], [tf.TensorSpec((3, 4))]])
def test_a_signature_that_does_not_fit_is_named_with_its_endpoint(signature: Any) -> None:
    archive = ExportArchive()
    with pytest.raises(ExportError, match=r"(?s)'serve' cannot be traced with input_signature=.*"):
        add(archive, dense().call, signature)
