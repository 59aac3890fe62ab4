"""The calls into TensorFlow that have no public way, and the reason for each.

Tried with TensorFlow 2.18 and 2.21; `tests/test_private_calls.py` fails when
one of them moves. Everything else in this project uses public API.
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

# An object whose attributes, under any name, become children of a SavedModel.
# `tf.Module` is public but reserves names such as `variables`. Keras builds its
# own `ExportArchive` on this class.
AutoTrackable = tf.__internal__.tracking.AutoTrackable

# What TensorFlow can track; only needed to refuse what it cannot, as Keras does.
Trackable = tf.__internal__.tracking.Trackable

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


def concrete_functions(function: Any) -> list[Any]:
    """The traces of a `tf.function`, oldest first.

    `get_concrete_function` would need the arguments of each trace again.
    """
    return list(function._list_all_concrete_functions())


def saved_traces(function: Any, options: tf.saved_model.SaveOptions | None) -> list[Any]:
    """The traces of a `tf.function` that a SavedModel of it will hold, made now.

    While TensorFlow saves, it traces a function again that was not traced in a
    context like its own. It must not: layers run on the training thread, and
    saving may not.
    """
    with save_context.save_context(options or tf.saved_model.SaveOptions()):
        return list(function._list_all_concrete_functions_for_serialization())


def argument_names(trace: Any) -> list[str]:
    """The names that a trace's tensor arguments get as the inputs of a signature, in order.

    The public `structured_input_signature` shows other names: where a leaf is
    called like its argument, TensorFlow puts the argument's name before it.
    """
    return [str(name) for name in trace._arg_keywords]


def replicas(variable: Any) -> Sequence[Any]:
    """The variables behind one that a `tf.distribute.Strategy` made; none behind another.

    A trace reads one of them, and knows nothing of the variable that users see.
    """
    return variable.values if isinstance(variable, tf.distribute.DistributedValues) else ()


class WithoutValues(tf.train.experimental.ShardingCallback):  # type: ignore[misc]
    """Keeps the values of variables out of the checkpoint in a SavedModel that is written.

    Only the description of the objects is left. The callback is public, and so is
    the option that takes it. That it may leave tensors out is not: the documentation
    says that it must not, and nothing checks it.

    Attributes:
        keys: the checkpoint keys of what was left out.
    """

    def __init__(self) -> None:
        self.keys: set[str] = set()

    @property
    def description(self) -> str:
        return "Only the description of the objects, because the values are written apart."

    def __call__(self, shardable_tensors: Sequence[Any]) -> list[dict[str, dict[str, Any]]]:
        self.keys |= {item.checkpoint_key for item in shardable_tensors} - {OBJECT_GRAPH_KEY}
        return [
            {item.checkpoint_key: {item.slice_spec: item.tensor}}
            for item in shardable_tensors
            if item.checkpoint_key == OBJECT_GRAPH_KEY
        ]


def signature_defs(saved_model: bytes) -> dict[str, Any]:
    """The `SignatureDef` protos in the contents of a `saved_model.pb`, by name.

    TensorFlow loads them publicly only together with the whole model.
    """
    message = saved_model_pb2.SavedModel.FromString(saved_model)
    return {
        name: signature
        for meta_graph in message.meta_graphs
        for name, signature in meta_graph.signature_def.items()
        if not name.startswith("__")  # Such as __saved_model_init_op.
    }


def state_keys(object_graph: bytes, attribute: str) -> list[dict[str, str]]:
    """The checkpoint keys of each object in a list attribute of the root.

    Each object's keys are given by their last part, such as ``VARIABLE_VALUE``.
    The format is TensorFlow's `TrackableObjectGraph`, which every checkpoint
    carries under `OBJECT_GRAPH_KEY`; no public module names the proto.
    """
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(object_graph)

    def children(node: Any) -> dict[str, Any]:
        return {child.local_name: graph.nodes[child.node_id] for child in node.children}

    listed = children(graph.nodes[0]).get(attribute)
    items = children(listed) if listed is not None else {}
    keys = [[a.checkpoint_key for a in items[str(i)].attributes] for i in range(len(items))]
    return [{key.rsplit("/", 1)[-1]: key for key in of_one} for of_one in keys]


def fingerprint_for(fingerprint: bytes, checkpoint_index: bytes) -> bytes:
    """The contents of `fingerprint.pb` for the same graph with another checkpoint.

    `checkpoint_hash` is the FarmHash64 of the checkpoint's index file
    (``tensorflow/cc/saved_model/fingerprinting.cc``). TensorFlow reads
    fingerprints publicly, but does not write them.
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

    `tf.raw_ops` has every operation but this one. `jax2tf` uses the same call, and
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
