"""The traced half of an export: endpoints as functions, and what state they need.

A `ServableGraph` is traced once and serves every export until something it was
traced from changes. Tracing runs Keras layers, so it belongs to the training
thread; saving runs none, so it may happen on any.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from ._tensorflow import (
    OBJECT_GRAPH_KEY,
    AutoTrackable,
    concrete_functions,
    signature_defs,
    state_keys,
)
from .errors import ExportError, ExportValueError
from .files import KnownFile, relative_files
from .quiet import quiet
from .record import EndpointInfo
from .resources import HostState, find_host_state, is_mutable_table
from .signatures import endpoint_info, flat_outputs
from .variable_index import VariableIndex, VariableInfo, write_index

# The attributes of the root under which every variable and table can be found
# again in the checkpoint, however else they are reachable.
_VARIABLES = "_all_variables"
_RESOURCES = "_all_resources"

SERVING_DEFAULT = "serving_default"
FINGERPRINT = "fingerprint.pb"


@dataclass(frozen=True)
class Endpoint:
    """An endpoint as it was registered.

    Attributes:
        name: its name as a method and as a signature.
        function: the `tf.function` that computes it.
        signature: one structure of `tf.TensorSpec` per argument; None for a
            traced `tf.function`, which carries its own.
    """

    name: str
    function: Any
    signature: Any

    def trace(self) -> Any:
        """The concrete function, traced now if it has not been."""
        if self.signature is not None:
            return self.function.get_concrete_function()
        return concrete_functions(self.function)[0]


class ServableGraph:
    """Endpoints, collections and resources, traced and ready to be saved.

    Args:
        endpoints: what to serve, in the order of registration.
        lists: lists of variables to keep by name (Keras or TensorFlow variables).
        tracked: layers and other objects whose lookup tables to export.

    Raises:
        ExportError: an endpoint cannot be traced with its signature.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        lists: Mapping[str, Sequence[Any]],
        tracked: Sequence[Any],
    ) -> None:
        self.endpoints = list(endpoints)
        self.lists = {
            name: [raw_variable(variable) for variable in variables]
            for name, variables in lists.items()
        }
        self.infos = {
            name: [_info(variable) for variable in variables] for name, variables in lists.items()
        }
        traces = [_traced(endpoint) for endpoint in self.endpoints]
        self.variables = _unique(
            [
                *(variable for variables in self.lists.values() for variable in variables),
                *(variable for trace in traces for variable in trace.variables),
            ]
        )
        functions = [endpoint.function for endpoint in self.endpoints]
        self.host_state = find_host_state([*tracked, *functions])
        self.resources = _exported_resources(
            find_host_state(tracked), self.host_state.resources, traces
        )
        self.tables = [resource for resource in self.resources if is_mutable_table(resource)]
        self._traces = traces

    def save(self, directory: Path, options: tf.saved_model.SaveOptions | None) -> SavedGraph:
        """Write a complete SavedModel and return what later exports can reuse of it.

        The variables in it are read while training may go on, so they may be
        torn; the caller replaces them by those of a snapshot.
        """
        root = AutoTrackable()
        for name, variables in self.lists.items():
            setattr(root, name, variables)
        for endpoint in self.endpoints:
            setattr(root, endpoint.name, endpoint.function)
        setattr(root, _VARIABLES, self.variables)
        setattr(root, _RESOURCES, self.resources)
        with quiet():
            tf.saved_model.save(
                root, str(directory), signatures=self._signatures(), options=options
            )
        return self._saved(directory)

    def _signatures(self) -> dict[str, Any]:
        signatures = {
            endpoint.name: _signature(endpoint, trace)
            for endpoint, trace in zip(self.endpoints, self._traces, strict=True)
        }
        if SERVING_DEFAULT not in signatures:
            signatures[SERVING_DEFAULT] = signatures[self.endpoints[0].name]
        return signatures

    def _index(self, keys: Sequence[str]) -> VariableIndex:
        key_of = {id(variable): key for variable, key in zip(self.variables, keys, strict=False)}
        return {
            name: [
                replace(info, key=key_of[id(variable)])
                for variable, info in zip(variables, self.infos[name], strict=True)
            ]
            for name, variables in self.lists.items()
        }

    def _saved(self, directory: Path) -> SavedGraph:
        """Take the variables out of a full save and keep the rest in memory."""
        reader = tf.train.load_checkpoint(str(directory / "variables" / "variables"))
        object_graph = reader.get_tensor(OBJECT_GRAPH_KEY)
        keys = [
            *(_only_key(keys) for keys in state_keys(object_graph, _VARIABLES)),
            *_table_keys(state_keys(object_graph, _RESOURCES)),
        ]
        unknown = set(reader.get_variable_to_shape_map()) - {*keys, OBJECT_GRAPH_KEY}
        if unknown:
            raise ExportError(
                "The endpoints depend on state that cannot be read at one point in time: "
                f"{sorted(unknown)}. Expected variables and lookup tables only."
            )
        shutil.rmtree(directory / "variables")
        write_index(directory, self._index(keys))
        files = {
            name: GraphFile((directory / name).read_bytes(), KnownFile.at(directory / name))
            for name in sorted(relative_files(directory))
        }
        fingerprint = files.pop(FINGERPRINT)
        fingerprint.known.path.unlink()
        return SavedGraph(
            files=files,
            fingerprint=fingerprint.content,
            object_graph=object_graph,
            keys=keys,
            endpoints={
                name: endpoint_info(signature)
                for name, signature in signature_defs(files["saved_model.pb"].content).items()
            },
        )


@dataclass
class GraphFile:
    """A file that is the same in every export of a graph.

    Attributes:
        content: its bytes, for when no earlier export has it any more.
        known: the file in the last export, to be linked.
    """

    content: bytes
    known: KnownFile

    def put(self, target: Path) -> None:
        """Make it part of another export."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.known.is_intact():
            self.known = self.known.share(target)
        else:
            target.write_bytes(self.content)
            self.known = KnownFile.at(target, self.known.info.sha256)


@dataclass(frozen=True)
class SavedGraph:
    """What stays the same in every SavedModel of one graph.

    Attributes:
        files: every file that is the same in each of them, by relative path.
        fingerprint: the contents of `fingerprint.pb`, which names a checkpoint.
        object_graph: the checkpoint's string entry that describes the objects.
        keys: the checkpoint key of each tensor of a snapshot, in its order.
        endpoints: every signature.
    """

    files: Mapping[str, GraphFile]
    fingerprint: bytes
    object_graph: bytes
    keys: Sequence[str]
    endpoints: Mapping[str, EndpointInfo]


def raw_variable(variable: Any) -> Any:
    """The `tf.Variable` inside a Keras variable.

    A Keras variable and the one inside it are two objects to TensorFlow, which
    would store the same weights twice.
    """
    return variable.value if isinstance(variable, keras.Variable) else variable


def _traced(endpoint: Endpoint) -> Any:
    try:
        return endpoint.trace()
    except Exception as error:
        raise ExportValueError(
            f"Endpoint '{endpoint.name}' cannot be traced with its signature "
            f"{endpoint.signature}: {error} Expected one spec per positional argument "
            "of the function."
        ) from error


def _signature(endpoint: Endpoint, trace: Any) -> Any:
    """The function behind a signature: the endpoint, with its outputs made flat."""
    if flat_outputs(trace.structured_outputs) is None:
        return trace
    (args, _) = trace.structured_input_signature

    def flat(*inputs: Any) -> Any:
        return flat_outputs(endpoint.function(*inputs))

    return tf.function(flat, input_signature=args, autograph=False).get_concrete_function()


def _exported_resources(
    tracked: HostState, reachable: Iterable[Any], traces: Sequence[Any]
) -> list[Any]:
    """Resources of tracked objects, and others that an endpoint captures."""
    captured = {id(tensor) for trace in traces for tensor in trace.captured_inputs}
    return _unique(
        [*tracked.resources, *(item for item in reachable if id(_handle(item)) in captured)]
    )


def _handle(resource: Any) -> Any:
    if isinstance(resource, tf.saved_model.Asset):
        return resource.asset_path
    return resource.resource_handle


def _only_key(keys: Mapping[str, str]) -> str:
    (key,) = keys.values()
    return key


def _table_keys(keys: Iterable[Mapping[str, str]]) -> list[str]:
    """Two keys for each mutable table, its keys' first; immutable tables have none."""
    return [key for of_one in keys for _, key in sorted(of_one.items())]


def _info(variable: Any) -> VariableInfo:
    path = variable.path if isinstance(variable, keras.Variable) else variable.name
    shape = tuple(tf.TensorShape(variable.shape).as_list())
    return VariableInfo(path, shape, tf.dtypes.as_dtype(variable.dtype).name, key="")


def _unique(items: Iterable[Any]) -> list[Any]:
    return list({id(item): item for item in items}.values())
