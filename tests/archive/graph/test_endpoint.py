"""An endpoint has the traces of its function, made anew or by its owner."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf
from support.artifacts import assert_same_outputs

from keras_export_callbacks import ExportArchive, ExportError
from keras_export_callbacks.archive.graph.endpoint import Endpoint


def export(function: Any) -> Any:
    archive = ExportArchive()
    archive.add_endpoint("serve", function)
    archive.write_out("artifact", verbose=False)
    return tf.saved_model.load("artifact")


def test_every_trace_of_a_function_without_signature_is_served() -> None:
    weights = {3: tf.Variable(tf.ones((3, 1))), 4: tf.Variable(2 * tf.ones((4, 1)))}

    @tf.function
    def project(x: Any, *, scale: Any, double: bool) -> dict[str, Any]:
        product = scale * (x @ weights[x.shape[1]])
        return {"inner": {"product": 2 * product if double else product}}

    for width in weights:
        project(tf.ones((1, width)), scale=tf.constant(3.0), double=True)
    revived = export(project)
    for width in weights:
        arguments = tf.ones((1, width)), {"scale": tf.constant(3.0), "double": True}
        expected = project(arguments[0], **arguments[1])
        assert_same_outputs(revived.serve(arguments[0], **arguments[1]), expected)
    assert set(revived.signatures["serve"].structured_input_signature[1]) == {"x", "scale"}
    assert set(revived.signatures["serve"].structured_outputs) == {"inner_product"}


def test_a_function_that_took_only_objects_is_refused() -> None:
    function = tf.function(lambda thing: tf.ones(1))
    function(object())
    with pytest.raises(ExportError, match="'serve' was only called with arguments"):
        export(function)


def test_what_the_archive_traced_is_traced_again_and_what_its_owner_traced_is_not() -> None:
    factor = [2.0]
    specs = [tf.TensorSpec((), tf.float32)]
    ours = Endpoint.of("ours", lambda x: factor[0] * x, specs)
    traced = tf.function(lambda x: factor[0] * x)
    traced(tf.constant(1.0))
    theirs = Endpoint.of("theirs", traced, None)
    for endpoint in (ours, theirs):
        assert float(endpoint.traces(None)[0](tf.constant(1.0))) == 2.0
    factor[0] = 3.0
    assert float(ours.renewed().traces(None)[0](tf.constant(1.0))) == 3.0
    assert float(theirs.renewed().traces(None)[0](tf.constant(1.0))) == 2.0
    # Whoever was given the function goes on calling the same one.
    assert ours.renewed().returned is ours.returned
