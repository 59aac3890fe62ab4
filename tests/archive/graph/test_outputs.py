"""The outputs of an endpoint, nested as they may be, get names in a signature."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from support.artifacts import assert_same_outputs
from support.serving import BATCH, FREE, export

from keras_export_callbacks import ExportError


def outputs_of(revived: Any, name: str = "serve") -> dict[str, Any]:
    return revived.signatures[name].structured_outputs


class Pair(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (lambda x: x, {"output_0"}),
        (lambda x: [x, x], {"output_0", "output_1"}),
        (lambda x: {"mean": x, "spread": x}, {"mean", "spread"}),
        (lambda x: Pair(x, x), {"left", "right"}),
        (lambda x: {"a": {"b": x, "c": [x, x]}}, {"a_b", "a_c_0", "a_c_1"}),
        (lambda x: (x, {"b": x}), {"output_0", "output_1_b"}),
    ],
    ids=["tensor", "list", "dict", "named tuple", "nested dict", "nested tuple"],
)
def test_the_method_keeps_the_structure_that_the_signature_flattens(
    outputs: Any, names: set[str]
) -> None:
    revived = export(outputs, [FREE])
    result, expected = revived.serve(tf.constant(BATCH)), outputs(BATCH)
    if not isinstance(expected, Pair):  # TensorFlow revives it as a type of its own.
        tf.nest.assert_same_structure(result, expected)
    assert_same_outputs(result, tf.nest.map_structure(tf.constant, expected))
    assert set(outputs_of(revived)) == names
    for value in revived.signatures["serve"](tf.constant(BATCH)).values():
        np.testing.assert_array_equal(value, BATCH)


def test_outputs_whose_flat_names_collide_are_refused() -> None:
    with pytest.raises(ExportError, match=r"Two outputs.*'a_b'"):
        export(lambda x: {"a": {"b": x}, "a_b": x}, [FREE])


def test_ragged_and_sparse_outputs() -> None:
    revived = export(
        lambda x: {"ragged": tf.RaggedTensor.from_tensor(x), "sparse": tf.sparse.from_dense(x)},
        [FREE],
    )
    assert revived.serve(BATCH)["ragged"].to_list() == BATCH.tolist()
    np.testing.assert_array_equal(tf.sparse.to_dense(revived.serve(BATCH)["sparse"]), BATCH)
