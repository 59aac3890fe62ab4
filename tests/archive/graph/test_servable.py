"""What a traced graph takes from a model, and in which of two readings."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_export_callbacks import ExportArchive, standard_endpoints
from keras_export_callbacks.archive.export_archive import registration_of
from keras_export_callbacks.archive.graph.plan import Planner
from keras_export_callbacks.archive.graph.servable import ServableGraph


def graph_of(archive: ExportArchive) -> ServableGraph:
    return Planner(registration_of(archive)).plan().graph


def trained() -> Any:
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
        ]
    )
    model.compile("adam", "mse")
    model.fit(tf.ones((4, 3)), tf.ones((4, 2)), verbose=0)
    return model


def test_weights_are_measured_and_all_else_is_progress() -> None:
    model, archive = trained(), ExportArchive()
    standard_endpoints(archive, model)
    graph = graph_of(archive)
    weights = {id(variable.value) for variable in model.weights}
    seeds = {id(variable.value) for variable in model.variables} - weights
    steps = {id(variable.value) for variable in model.optimizer.variables}
    assert set(map(id, graph.measured)) == weights
    assert set(map(id, graph.progress)) == seeds | steps
    assert len(seeds) == 1


def test_every_variable_is_there_once_however_it_is_reached() -> None:
    model, archive = trained(), ExportArchive()
    standard_endpoints(archive, model)
    archive.add_variable_collection("again", model.variables)
    archive.add_endpoint("kernel", lambda: model.layers[0].kernel.value + 0.0, [])
    variables = graph_of(archive).variables
    assert len(variables) == len(set(map(id, variables)))
    assert len(variables) == len(model.variables) + len(model.optimizer.variables)


def test_signatures_are_the_endpoints_and_the_default() -> None:
    archive = ExportArchive()
    archive.add_endpoint("double", lambda x, y: 2 * x + y, [tf.TensorSpec(()), tf.TensorSpec(())])
    archive.add_endpoint("half", lambda x: x / 2, [tf.TensorSpec(())])
    signatures = graph_of(archive).signatures()
    assert {name: item.endpoint.name for name, item in signatures.items()} == {
        "serving_default": "double",
        "double": "double",
        "half": "half",
    }
    assert list(signatures["double"].inputs) == ["x", "y"]
