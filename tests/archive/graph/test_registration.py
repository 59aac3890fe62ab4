"""What was registered: its variables as they are now, and what may be taken over later."""

from __future__ import annotations

from typing import Any

import keras
import pytest
import tensorflow as tf

from keras_export_callbacks import ExportArchive, ExportError
from keras_export_callbacks.archive.export_archive import registration_of
from keras_export_callbacks.archive.graph.registration import Registration


def layer() -> Any:
    dense = keras.layers.Dense(2)
    dense.build((None, 3))
    return dense


def registered(dense: Any, variables: list[Any], name: str = "serve") -> Registration:
    archive = ExportArchive()
    archive.track(dense)
    archive.add_endpoint(name, dense.call, [tf.TensorSpec((None, 3))])
    archive.add_variable_collection("more", variables)
    return registration_of(archive)


def test_variables_that_layers_share_are_listed_once() -> None:
    dense = layer()
    model = keras.Sequential([keras.Input((3,)), dense])
    archive = ExportArchive()
    archive.track(dense)
    archive.track(model)
    assert list(map(id, archive.variables)) == list(map(id, dense.variables))
    dense.trainable = False
    assert archive.trainable_variables == []
    assert len(archive.non_trainable_variables) == 2


def test_a_list_is_asked_for_its_variables_each_time() -> None:
    listed: list[Any] = []
    registration = registered(layer(), listed)
    assert registration.lists()["more"] == []
    listed.append(tf.Variable(1.0))
    assert registration.lists()["more"] == listed
    listed.append("no variable")
    with pytest.raises(ExportError, match=r"'str'.*collection 'more'"):
        registration.lists()


def test_more_variables_of_the_same_registration_are_taken() -> None:
    dense, first, second = layer(), tf.Variable(1.0), tf.Variable(2.0)
    registration = registered(dense, [first])
    assert registration.take_collections(registered(dense, [first, second]))
    assert registration.lists()["more"] == [first, second]


def test_those_of_another_registration_are_not() -> None:
    dense, first, second = layer(), tf.Variable(1.0), tf.Variable(2.0)
    registration = registered(dense, [first])
    for other in (
        registered(dense, [second]),
        registered(layer(), [first, second]),
        registered(dense, [first, second], name="other"),
    ):
        assert not registration.take_collections(other)
    assert registration.lists()["more"] == [first]
