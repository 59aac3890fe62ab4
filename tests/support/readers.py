"""Programs that read SavedModels, and how far they are from the live model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf

from keras_export_callbacks.archive.parity.c_library import run_apart

BATCHES = (1, 7)

# A text for each kind of model and each reader.
Table = dict[tuple[str, str], str]


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


def named(sample: Any, names: list[str]) -> dict[str, Any]:
    """A batch by the names of the signature's inputs."""
    if isinstance(sample, dict):
        return {name: np.asarray(item) for name, item in sample.items()}
    (name,) = names
    return {name: np.asarray(sample)}


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


@contextmanager
def printed() -> Iterator[Table]:
    """A table that is printed at the end."""
    rows: Table = {}
    yield rows
    print(f"\n\n{'largest difference from the live model':<40}batch 1    batch 7")
    for (kind, reader), text in rows.items():
        print(f"{kind:<28}{reader:<12}{text}")
