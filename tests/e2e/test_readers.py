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
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from support.kinds import KINDS
from support.models import IS_OLD_KERAS

from keras_export_callbacks import Exporter, ExportError, ExportEveryN
from keras_export_callbacks.archive.parity.c_library import run_apart

BATCHES = (1, 7)


def in_python(path: str, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    serve = tf.saved_model.load(path).signatures["serve"]
    tensors = [{name: tf.constant(item) for name, item in batch.items()} for batch in inputs]
    return [{name: item.numpy() for name, item in serve(**batch).items()} for batch in tensors]


def in_c(path: str, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return run_apart(path, [("serve", batch) for batch in inputs])


def in_openvino(path: str, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    import openvino

    model = openvino.convert_model(path)  # The signature `serving_default`, which is `serve`.
    # By itself it may compute in bfloat16 where the processor has that.
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [
        {
            # NumPy has no bfloat16: OpenVINO gives its bits as float16.
            key.any_name: value.view(ml_dtypes.bfloat16)
            if key.get_element_type() == openvino.Type.bf16
            else value
            for key, value in compiled(batch).items()
        }
        for batch in inputs
    ]


def in_litert(path: str, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from ai_edge_litert.interpreter import Interpreter

    converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=["serve"])
    interpreter = Interpreter(model_content=converter.convert())
    serve = interpreter.get_signature_runner("serve")
    return [serve(**batch) for batch in inputs]


READERS: dict[str, Callable[..., Any]] = {"Python": in_python, "C library": in_c}

# Those that compute with code of their own, which rounds as it likes.
OTHERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "OpenVINO": ("openvino", in_openvino),
    "LiteRT": ("ai_edge_litert", in_litert),
}


@pytest.fixture(scope="module")
def table() -> Iterator[dict[tuple[str, str], str]]:
    rows: dict[tuple[str, str], str] = {}
    yield rows
    print(f"\n\n{'largest difference from the live model':<40}batch 1    batch 7")
    for (kind, reader), text in rows.items():
        print(f"{kind:<28}{reader:<12}{text}")


def named(sample: Any, names: list[str]) -> dict[str, Any]:
    """A batch by the names of the signature's inputs."""
    if isinstance(sample, dict):
        return {name: np.asarray(item) for name, item in sample.items()}
    (name,) = names
    return {name: np.asarray(sample)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_computes_what_the_model_does(
    kind: str, table: dict[tuple[str, str], str]
) -> None:
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


def difference(live: Any, served: dict[str, Any]) -> float:
    """The largest of all outputs."""
    expected = live if isinstance(live, dict) else {"output_0": live}
    assert expected.keys() == served.keys()
    for name, item in expected.items():
        assert served[name].dtype == np.asarray(item).dtype
    return max(
        float(np.max(np.abs(np.asarray(item, "float64") - served[name].astype("float64"))))
        for name, item in expected.items()
    )


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
