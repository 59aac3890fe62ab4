"""Specs of every kind, the signature of a model, and the names of inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.processes import run_in_c
from support.serving import BATCH, FREE, export

from keras_export_callbacks import ExportArchive, ExportError, standard_endpoints
from keras_export_callbacks.archive.graph.signatures import model_signature, tensor_specs


def inputs_of(revived: Any, name: str = "serve") -> dict[str, Any]:
    return revived.signatures[name].structured_input_signature[1]


def outputs_of(revived: Any, name: str = "serve") -> dict[str, Any]:
    return revived.signatures[name].structured_outputs


@pytest.mark.parametrize(
    "spec",
    [
        FREE,
        keras.InputSpec(shape=(None, 3), dtype="float32"),
        keras.Input((3,)),
        tf.ones((5, 3)),
        tf.Variable(tf.ones((5, 3))),
        keras.Variable(np.ones((5, 3), "float32")),
    ],
    ids=["TensorSpec", "InputSpec", "KerasTensor", "tensor", "tf.Variable", "keras.Variable"],
)
def test_every_kind_of_spec_leaves_the_batch_free(spec: Any) -> None:
    assert tensor_specs([spec]) == [FREE]


class Pair(NamedTuple):
    left: Any
    right: Any


def test_structures_are_kept_and_leaves_in_dicts_named() -> None:
    scalar = tf.TensorSpec((), tf.int32)
    converted = tensor_specs(({"b": [FREE, scalar], "a": (FREE,)}, Pair(FREE, scalar)))
    assert converted == (
        {
            "b": [tf.TensorSpec((None, 3), name="b_0"), tf.TensorSpec((), tf.int32, "b_1")],
            "a": (tf.TensorSpec((None, 3), name="a"),),
        },
        Pair(FREE, scalar),
    )
    assert isinstance(converted[1], Pair)


def test_names_of_ones_own_stay() -> None:
    specs = [keras.InputSpec(shape=(1,), dtype="int32", name="mine"), keras.Input((), name="its")]
    assert [spec.name for spec in tensor_specs(specs)] == ["mine", "its"]
    assert tensor_specs([{"key": specs[1]}])[0]["key"].name == "its"


def asymmetric(inputs: Any) -> Any:
    return 100 * inputs["z"] + 10 * inputs["a"] + inputs["m"]


def test_a_dict_of_inputs_is_fed_by_its_keys_everywhere() -> None:
    revived = export(asymmetric, [{"z": FREE, "a": FREE, "m": FREE}])
    values = {"z": BATCH, "a": BATCH + 1, "m": BATCH + 2}
    expected = asymmetric(values)
    assert set(inputs_of(revived)) == {"a", "m", "z"}
    np.testing.assert_array_equal(revived.serve(values), expected)
    tensors = {name: tf.constant(value) for name, value in values.items()}
    np.testing.assert_array_equal(revived.signatures["serve"](**tensors)["output_0"], expected)
    served = run_in_c(Path("artifact"), "serving_default", values)
    np.testing.assert_array_equal(served["output_0"], expected)


def test_nested_dicts_name_inputs_by_their_path() -> None:
    revived = export(
        lambda x: x["left"]["a"] - x["right"]["a"], [{"left": {"a": FREE}, "right": {"a": FREE}}]
    )
    assert set(inputs_of(revived)) == {"left_a", "right_a"}


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")  # Keras tells of it too.
def test_inputs_named_like_one_another_are_refused() -> None:
    first, second = keras.Input((2,), name="b"), keras.Input((2,), name="a")
    model = keras.Model({"a": first, "b": second}, keras.ops.subtract(first, second))
    with pytest.raises(ExportError, match="takes an input named 'b' under the key 'a'"):
        model_signature(model)


def test_arguments_are_named_as_in_the_function() -> None:
    revived = export(lambda height, width: height - width, [FREE, FREE])
    assert set(inputs_of(revived)) == {"height", "width"}
    np.testing.assert_array_equal(revived.serve(width=BATCH, height=BATCH + 1), BATCH * 0 + 1)


def two_headed() -> Any:
    inputs = [keras.Input((3,)), keras.Input((2,))]
    joined = keras.layers.Concatenate()(inputs)
    return keras.Model(inputs, {"b": keras.layers.Dense(1)(joined), "a": joined})


def test_names_are_the_same_when_the_same_model_is_built_again() -> None:
    def names() -> tuple[Any, Any]:
        archive = ExportArchive()
        standard_endpoints(archive, two_headed())
        archive.write_out("artifact", verbose=False)
        revived = tf.saved_model.load("artifact")
        return inputs_of(revived), outputs_of(revived)

    first = names()
    assert set(first[0]) == {"inputs_0", "inputs_1"}
    assert set(first[1]) == {"a", "b"}
    assert names() == first


class Called(keras.Model):
    """Subclassed; computes what `compute` does."""

    def __init__(self, compute: Any = None) -> None:
        super().__init__()
        self.compute = compute

    def call(self, inputs: Any) -> Any:
        return self.compute(inputs)


class Weighted(keras.Model):
    """Subclassed, with two arguments."""

    def build(self, values_shape: Any, weights_shape: Any) -> None:
        pass

    def call(self, values: Any, weights: Any) -> Any:
        return values * weights


def lazy_sequential() -> Any:
    model = keras.Sequential([keras.layers.Dense(2)])
    model(BATCH)
    return model


def called(compute: Any, inputs: Any) -> Any:
    model = Called(compute)
    model(inputs)
    return model


def weighted() -> Any:
    model = Weighted()
    model(BATCH, BATCH[:, :1])
    return model


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Flatten()]),
         [tf.TensorSpec((None, 3), tf.int32, "inputs")]),
        (lazy_sequential, [tf.TensorSpec((None, 3), name="inputs")]),
        (two_headed, [[tf.TensorSpec((None, 3), name="inputs_0"),
                       tf.TensorSpec((None, 2), name="inputs_1")]]),
        (lambda: called(lambda x: x, BATCH), [tf.TensorSpec((None, 3), name="inputs")]),
        (lambda: called(lambda x: x["a"], {"a": BATCH, "b": BATCH[:, :1]}),
         [{"a": tf.TensorSpec((None, 3), name="a"), "b": tf.TensorSpec((None, 1), name="b")}]),
        (lambda: called(lambda x: x[0] + x[1], [BATCH, BATCH]),
         [[tf.TensorSpec((None, 3), name="inputs_0"), tf.TensorSpec((None, 3), name="inputs_1")]]),
        (weighted, [tf.TensorSpec((None, 3), name="values"),
                    tf.TensorSpec((None, 1), name="weights")]),
    ],
    ids=["sequential", "lazy sequential", "functional", "subclassed", "subclassed with a dict",
         "subclassed with a list", "subclassed with two arguments"],
)  # fmt: skip
def test_the_signature_of_a_model(build: Any, expected: Any) -> None:
    assert model_signature(build()) == expected


@pytest.mark.parametrize(
    "model", [keras.Sequential([keras.layers.Dense(2)]), Called(), keras.layers.Dense(2)]
)
def test_a_model_whose_inputs_are_not_known_is_refused(model: Any) -> None:
    with pytest.raises(ExportError):
        model_signature(model)
