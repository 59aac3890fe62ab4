"""Calls to private TensorFlow API, each with the reason why the public API is not enough.

They work with TensorFlow 2.18 and 2.21. `tests/test_private_calls.py` fails if
TensorFlow changes one of them. The engine's calls to private Keras API are in
`graph/_keras.py`. All other modules of the engine use public API.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.core.protobuf import (
    fingerprint_pb2,
    saved_model_pb2,
    trackable_object_graph_pb2,
)
from tensorflow.python.saved_model import save_context

# The attributes of such an object become children of a SavedModel, under any name.
# `tf.Module` is public, but it reserves names such as `variables`. Keras builds
# its own `ExportArchive` on this class.
AutoTrackable = tf.__internal__.tracking.AutoTrackable

# The base class of all objects that TensorFlow can track, such as lookup tables.
Trackable = tf.__internal__.tracking.Trackable

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


def concrete_functions(function: Any) -> list[Any]:
    """Return the traces of a `tf.function`, oldest first.

    The public `get_concrete_function` needs the arguments of each trace, and these
    are not known here.
    """
    return list(function._list_all_concrete_functions())


def saved_traces(function: Any, options: tf.saved_model.SaveOptions | None) -> list[Any]:
    """Return the traces that a SavedModel of a `tf.function` will hold, and make missing ones.

    When TensorFlow saves a function, it traces the function again, unless it was
    traced in the same save context. That must not happen: saving may run on another
    thread, but layers may only run on the training thread. This function
    therefore traces in that context.
    """
    with save_context.save_context(options or tf.saved_model.SaveOptions()):
        return list(function._list_all_concrete_functions_for_serialization())


def argument_names(trace: Any) -> list[str]:
    """Return the names that the arguments of a trace have as inputs of a signature, in order.

    The public `structured_input_signature` shows other names. If a leaf has the same
    name as its argument, TensorFlow puts the argument's name before it.
    """
    return [str(name) for name in trace._arg_keywords]


def replicas(variable: Any) -> Sequence[Any]:
    """Return the variables behind a variable of a `tf.distribute.Strategy`.

    Other variables have none. A trace reads one of these replicas. It does not refer to
    the variable that users see.
    """
    return variable.values if isinstance(variable, tf.distribute.DistributedValues) else ()


class WithoutValues(tf.train.experimental.ShardingCallback):  # type: ignore[misc]
    """Keeps the values of variables out of the checkpoint of a SavedModel.

    The checkpoint then holds only the description of the objects. The callback and the
    option that takes it are public. Leaving tensors out is not: the documentation
    forbids it, although nothing checks it.

    Attributes:
        keys: The checkpoint keys of the tensors that were left out.
    """

    def __init__(self) -> None:
        self.keys: set[str] = set()

    @property
    def description(self) -> str:
        return "Writes only the description of the objects. The values are written separately."

    def __call__(self, shardable_tensors: Sequence[Any]) -> list[dict[str, dict[str, Any]]]:
        self.keys |= {item.checkpoint_key for item in shardable_tensors} - {OBJECT_GRAPH_KEY}
        return [
            {item.checkpoint_key: {item.slice_spec: item.tensor}}
            for item in shardable_tensors
            if item.checkpoint_key == OBJECT_GRAPH_KEY
        ]


def signature_defs(saved_model: bytes) -> dict[str, Any]:
    """Return the `SignatureDef` protos in the contents of a `saved_model.pb`, by name.

    The public API loads them only together with the whole model.
    """
    message = saved_model_pb2.SavedModel.FromString(saved_model)
    return {
        name: signature
        for meta_graph in message.meta_graphs
        for name, signature in meta_graph.signature_def.items()
        if not name.startswith("__")  # For example, __saved_model_init_op.
    }


def state_keys(object_graph: bytes, attribute: str) -> list[dict[str, str]]:
    """Return the checkpoint keys of each object in a list attribute of the root.

    Each object has a dict of its keys, by their last part, such as ``VARIABLE_VALUE``.

    Args:
        object_graph: TensorFlow's `TrackableObjectGraph` proto. Every checkpoint holds it
            under `OBJECT_GRAPH_KEY`, but no public module contains the proto.
        attribute: The name of the attribute.
    """
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(object_graph)

    def children(node: Any) -> dict[str, Any]:
        return {child.local_name: graph.nodes[child.node_id] for child in node.children}

    listed = children(graph.nodes[0]).get(attribute)
    items = children(listed) if listed is not None else {}
    keys = [[a.checkpoint_key for a in items[str(i)].attributes] for i in range(len(items))]
    return [{key.rsplit("/", 1)[-1]: key for key in of_one} for of_one in keys]


def fingerprint_for(fingerprint: bytes, checkpoint_index: bytes) -> bytes:
    """Return the contents of `fingerprint.pb` for the same graph with another checkpoint.

    `checkpoint_hash` is the FarmHash64 of the checkpoint's index file
    (``tensorflow/cc/saved_model/fingerprinting.cc``). The public API reads
    fingerprints, but does not write them.
    """
    message = fingerprint_pb2.FingerprintDef.FromString(fingerprint)
    data = tf.io.decode_raw([checkpoint_index], tf.uint8)
    digest = tf.raw_ops.Fingerprint(data=data, method=b"farmhash64").numpy()
    message.checkpoint_hash = int.from_bytes(digest[0].tobytes(), "little")
    return bytes(message.SerializeToString(deterministic=True))


def call_module(
    args: Sequence[Any],
    module: bytes,
    *,
    version: int,
    dtypes: Sequence[Any],
    shapes: Sequence[Sequence[int | None]],
    platforms: Sequence[str],
) -> Sequence[Any]:
    """Call a StableHLO module in a trace, by the operation ``XlaCallModule``.

    `tf.raw_ops` has every operation except this one. `jax2tf` uses the same call, and
    chooses the version of StableHLO itself.
    """
    results: Sequence[Any] = xla.call_module(
        list(args),
        version=version,
        module=module,
        Tout=list(dtypes),
        Sout=list(shapes),
        platforms=[name.upper() for name in platforms],
        function_list=[],
        has_token_input_output=False,
        disabled_checks=[],
    )
    return results
