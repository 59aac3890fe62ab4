"""Every kind of model, in every reader, at batch sizes 1 and 7: how far from the live model.

``make readers`` prints the table.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.cases import mostly_zoo
from support.kinds import KINDS
from support.models import IS_OLD_KERAS
from support.readers import BATCHES, OTHERS, READERS, Table, difference, named, printed

from keras_export_callbacks import Exporter, ExportError, ExportEveryN


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    with printed() as rows:
        yield rows


@pytest.mark.slow
@pytest.mark.parametrize("kind", mostly_zoo(KINDS, "CNN with BatchNormalization", "int8"))
def test_every_reader_computes_what_the_model_does(kind: str, table: Table) -> None:
    if kind == "TextVectorization" and IS_OLD_KERAS:
        pytest.skip("Keras could not train this model yet")
    keras.utils.set_random_seed(1)
    model, sample = KINDS[kind].build()
    # Published only if the C library computes the same of the sample.
    with Exporter("base", model, log_dir=None, sample_inputs=sample) as exporter:
        record = exporter.export().result()
    # Elsewhere, and with nothing left where it was.
    shutil.move("base/1", "moved")
    shutil.rmtree("base")
    batches = [tf.nest.map_structure(lambda item: item[:n], sample) for n in BATCHES]  # noqa: B023
    live = [model(batch, training=False) for batch in batches]
    names = list(record.endpoints["serve"].inputs)
    inputs = [named(batch, names) for batch in batches]

    def differences(run: Callable[..., Any]) -> list[float]:
        return [difference(*pair) for pair in zip(live, run("moved", inputs), strict=True)]

    for reader, run in READERS.items():
        found = differences(run)
        table[kind, reader] = f"{found[0]:<11.3g}{found[1]:.3g}"
        assert max(found) <= KINDS[kind].rounding
    for reader, (package, run) in OTHERS.items():
        if reader in KINDS[kind].unread:
            table[kind, reader] = KINDS[kind].unread[reader]
        elif find_spec(package) is not None:
            found = differences(run)
            table[kind, reader] = f"{found[0]:<11.3g}{found[1]:.3g}"
            assert max(found) <= max(KINDS[kind].rounding, 1e-6)
    assert Path("moved").exists()


@pytest.mark.parametrize("kind", ["ragged", "sparse"])
def test_ragged_and_sparse_inputs_are_refused_before_training(kind: str) -> None:
    if kind == "ragged" and IS_OLD_KERAS:
        pytest.skip("Keras had no ragged inputs")
    inputs = keras.Input((4,), name="x", **{kind: True})
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    callback = ExportEveryN("base", log_dir=None)
    with pytest.raises(ExportError, match=f"Input 'x' is {kind}.* endpoints of your own"):
        model.fit(np.ones((2, 4)), np.ones((2, 1)), verbose=0, callbacks=[callback])
    assert model.optimizer.iterations == 0


def test_recurrent_layers_need_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced on a machine that has one, they would use a kernel that others lack."""
    recurrent = [keras.layers.LSTM(3, return_sequences=True), keras.layers.GRU(2)]
    model = keras.Sequential([keras.Input((None, 4)), *recurrent])
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: ["a GPU"])
    with Exporter("base", model, log_dir=None) as exporter:
        record = exporter.export().result()
    monkeypatch.undo()
    revived = tf.saved_model.load(str(record.path))
    graph = revived.signatures["serve"].graph.as_graph_def()
    used = {node.op for function in graph.library.function for node in function.node_def}
    assert used
    assert not any("cudnn" in op.lower() for op in used)
    assert [layer.use_cudnn for layer in model.layers] == ["auto", "auto"]


def test_nothing_is_left_to_be_compiled_by_the_server() -> None:
    """Training with `jit_compile` leaves no mark, which a server without XLA would refuse."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
    model.compile("adam", "mse", jit_compile=True)
    callback = ExportEveryN("base", log_dir=None, sample_inputs=np.ones((2, 4), "float32"))
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[callback])
    graph = tf.saved_model.load("base/1").signatures["serve"].graph.as_graph_def()
    functions = graph.library.function
    attributes = [item.attr for function in functions for item in [function, *function.node_def]]
    assert attributes
    assert not any(attribute["_XlaMustCompile"].b for attribute in attributes)
