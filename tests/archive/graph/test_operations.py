"""The operations of a trace, those of the functions it calls, and those before a tensor."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_export_callbacks.archive.graph.operations import dtypes, operations


def trace_of(function: Any) -> Any:
    return tf.function(function, autograph=False).get_concrete_function(
        tf.TensorSpec((None,), tf.float32)
    )


def test_operations_of_called_functions_and_branches_are_found() -> None:
    @tf.function  # type: ignore[untyped-decorator]
    def inner(x: Any) -> Any:
        return tf.sin(x)

    def outer(x: Any) -> Any:
        return tf.cond(tf.size(x) > 1, lambda: inner(x), lambda: tf.cos(x))

    found = {node.op for node in operations(trace_of(outer))}
    assert {"Sin", "Cos", "Greater"} <= found
    assert "Tan" not in found


def test_operations_that_lead_to_a_tensor_are_those_it_depends_on() -> None:
    trace = trace_of(lambda x: (tf.sin(x), tf.cos(x) + 1.0))
    first, second = trace.outputs
    assert {"Sin"} <= {node.op for node in operations(trace, [first])}
    assert not {"Cos", "AddV2"} & {node.op for node in operations(trace, [first])}
    assert {"Cos", "AddV2"} <= {node.op for node in operations(trace, [second])}


def test_every_dtype_that_occurs_is_told() -> None:
    nodes = operations(trace_of(lambda x: tf.cast(tf.cast(x, tf.bfloat16), tf.int64)))
    wanted = {kind.as_datatype_enum for kind in (tf.float32, tf.bfloat16, tf.int64)}
    assert wanted <= dtypes(nodes)
    assert tf.complex64.as_datatype_enum not in dtypes(nodes)
