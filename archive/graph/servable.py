"""The traced graph of an export, with the endpoints and the state that they need.

A `ServableGraph` is traced once. All exports use it until something that it was
traced from changes. Tracing runs Keras layers, so it must happen on the training
thread. Saving runs no layers, so it may happen on any thread.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from .._tensorflow import (
    OBJECT_GRAPH_KEY,
    AutoTrackable,
    WithoutValues,
    argument_names,
    replicas,
    signature_defs,
    state_keys,
)
from ..errors import ExportError, UntrackedError
from ..state.layer_state import read_layers
from ..state.model_state import (
    described,
    find_model_state,
    is_mutable_table,
    raw_variable,
)
from ..state.variable_index import (
    ADDRESSES,
    ELSEWHERE,
    OPTIMIZER_VARIABLES,
    STATE,
    TABLES,
    VARIABLES,
    VariableIndex,
    VariableInfo,
    write_index,
)
from ..store.files import KeptFile, relative_files
from ..store.record import EndpointInfo
from .endpoint import Endpoint, signature_of
from .host_state import find_host_state
from .operations import operations
from .quiet import quiet
from .signatures import check_input_names, endpoint_info

# Attributes of the root that list all variables and tables. They lead to the checkpoint
# key of each of them, wherever else it is reachable.
_VARIABLES = "_all_variables"
_RESOURCES = "_all_resources"

# TensorFlow appends these to the key of a mutable table, for each of its two tensors.
_PARTS = ("keys", "values")

SERVING_DEFAULT = "serving_default"
FINGERPRINT = "fingerprint.pb"

# The operations that `tf.py_function` and `tf.numpy_function` make.
_IN_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}

# The list of variables that optimizers do not change. It may be missing.
STEADY = "non_trainable_variables"


class ServableGraph:
    """Endpoints, collections and resources that are traced and ready to be saved.

    Args:
        endpoints: The endpoints to serve, in the order of registration.
        lists: Lists of Keras or TensorFlow variables to export, by name.
        tracked: Layers and other objects. Their lookup tables are exported.
        options: The options to save the graph with.
        optimizer: The optimizer that trains the tracked model, if it is not the one that the
            model is compiled with.

    Raises:
        ExportError: If an endpoint cannot be traced with its signature, or if it uses
            something that cannot be exported.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        lists: Mapping[str, Sequence[Any]],
        tracked: Sequence[Any],
        options: tf.saved_model.SaveOptions | None,
        optimizer: Any = None,
    ) -> None:
        self.endpoints = list(endpoints)
        self.lists = {
            name: [raw_variable(variable) for variable in variables]
            for name, variables in lists.items()
        }
        self.infos = {
            name: [described(variable) for variable in variables]
            for name, variables in lists.items()
        }
        self._options = options
        roots = [*tracked, *(endpoint.function for endpoint in self.endpoints)]
        with _portable(find_host_state(roots).layers):
            self._traces = {endpoint.name: endpoint.traces(options) for endpoint in self.endpoints}
        self._signatures = {
            name: signature_of(name, traces[0]) for name, traces in self._traces.items()
        }
        for name, traces in self._traces.items():
            _check_portable(name, traces)
        for name, signature in self._signatures.items():
            check_input_names(name, argument_names(signature))
        self._signatures.setdefault(SERVING_DEFAULT, self._signatures[self.endpoints[0].name])
        self.host_state = find_host_state(roots)  # Tracing may have made new objects.
        traces = [trace for traces in self._traces.values() for trace in traces]
        has_optimizer = bool(lists.get(OPTIMIZER_VARIABLES))
        self._state = find_model_state(tracked, has_optimizer, optimizer)
        found = map(raw_variable, self._state.variables.values())
        listed = [*(item for variables in self.lists.values() for item in variables), *found]
        hidden = {id(replica) for variable in listed for replica in replicas(variable)}
        read = [variable for trace in traces for variable in trace.variables]
        everything = _unique([*listed, *(item for item in read if id(item) not in hidden)])
        weights = [item for layer in self.host_state.layers for item in layer.weights]
        self._weights = {id(raw_variable(item)): item for item in weights}
        self.measured = [variable for variable in everything if id(variable) in self._weights]
        # The other state: seeds, states of recurrent layers, and optimizer variables.
        self.progress = [variable for variable in everything if id(variable) not in self._weights]
        named = [*tracked, *self._state.tables.values()]
        self.resources = _exported(self.host_state.resources, named, traces)
        self.tables = [resource for resource in self.resources if is_mutable_table(resource)]
        self._layers = read_layers(self._state.layers)
        self._check_captures()

    def save(self, directory: Path) -> SavedGraph:
        """Write a SavedModel without its variables. Return what later exports can reuse.

        The variables are left out because training may go on meanwhile. The file would
        then mix the values of several steps. The caller writes the values of a snapshot.
        """
        root = AutoTrackable()
        for name, variables in self.lists.items():
            setattr(root, name, variables)
        for endpoint in self.endpoints:
            setattr(root, endpoint.name, endpoint.function)
        setattr(root, _VARIABLES, self.variables)
        setattr(root, _RESOURCES, self.resources)
        left_out = WithoutValues()
        options = self._save_options()
        with quiet():
            try:
                options.experimental_sharding_callback = left_out
                tf.saved_model.save(root, str(directory), self._signatures, options)
            except RuntimeError:  # A TensorFlow that checks what is left out may raise this.
                options.experimental_sharding_callback = None
                tf.saved_model.save(root, str(directory), self._signatures, options)
        return self._saved(directory, left_out.keys)

    @property
    def variables(self) -> list[Any]:
        """All variables in the artifact, each once."""
        return [*self.measured, *self.progress]

    def signatures(self) -> dict[str, Signature]:
        """Return all signatures, by name."""
        endpoints = {SERVING_DEFAULT: self.endpoints[0]}
        endpoints |= {endpoint.name: endpoint for endpoint in self.endpoints}
        return {
            name: Signature(item, self._traces[item.name][0], argument_names(signature))
            for name, item in endpoints.items()
            for signature in [self._signatures[name]]
        }

    def describe(self) -> Mapping[str, str]:
        """Return the arguments and outputs of each endpoint, as TensorFlow prints them."""
        return {
            name: traces[0].pretty_printed_signature(verbose=True)
            for name, traces in self._traces.items()
        }

    def _save_options(self) -> tf.saved_model.SaveOptions:
        """Return a copy of the save options, with aliases of the traces that are saved.

        Users give aliases to the functions that `add_endpoint` returned.
        """
        saved = {id(endpoint.returned): self._traces[endpoint.name] for endpoint in self.endpoints}
        options = copy.copy(self._options) or tf.saved_model.SaveOptions()
        options.function_aliases = {
            alias: saved.get(id(function), function)
            for alias, function in options.function_aliases.items()
        }
        return options

    def _check_captures(self) -> None:
        """Raise an error if an endpoint uses a table or variable that is not exported."""
        variables = [
            item for variable in self.variables for item in replicas(variable) or [variable]
        ]
        known = {
            *(id(variable.handle) for variable in variables),
            *(id(_handle(resource)) for resource in self.resources),
        }
        for name, traces in self._traces.items():
            captured = [tensor for trace in traces for tensor in trace.captured_inputs]
            if any(item.dtype == tf.resource and id(item) not in known for item in captured):
                raise UntrackedError(
                    f"Endpoint '{name}' uses a lookup table or another resource that is not part "
                    "of the archive. Call `archive.track(resource)` with it first."
                )

    def _index(self, key_of: Mapping[int, str], table_keys: Sequence[str]) -> VariableIndex:
        addresses = self._state.addresses()
        index = {
            name: tuple(
                replace(info, key=key_of[id(variable)])
                for variable, info in zip(variables, self.infos[name], strict=True)
            )
            for name, variables in self.lists.items()
        }
        # `restore` assigns only these lists by position. A variable in another collection, such as
        # an average, is listed below, so that `restore` either finds it or warns of it.
        places = [*self.lists.get(VARIABLES, ()), *self.lists.get(OPTIMIZER_VARIABLES, ())]
        others = {id(item) for item in self.variables} - {id(item) for item in places}
        infos = {id(item): self._described(item, key_of[id(item)]) for item in self.variables}
        state = [
            replace(infos[at], path=addresses[at]) for at in infos if at in others & {*addresses}
        ]
        elsewhere = [infos[at] for at in infos if at in others - {*addresses}]
        of_tables = {id(table): at for at, table in self._state.tables.items()}
        tables: list[VariableInfo] = []
        for table, *keys in zip(self.tables, table_keys[::2], table_keys[1::2], strict=True):
            address = of_tables.get(id(table))
            name = address or type(table).__name__
            kinds = zip((table.key_dtype, table.value_dtype), keys, strict=True)
            parts = [VariableInfo(name, (None,), dtype.name, key) for dtype, key in kinds]
            (tables if address else elsewhere).extend(parts)
        placed = [
            replace(infos[id(item)], path=addresses.get(id(item), ""))
            for item in self.lists.get(VARIABLES, ())
        ]
        return index | {
            STATE: tuple(state),
            TABLES: tuple(tables),
            ADDRESSES: tuple(placed),
            ELSEWHERE: tuple(elsewhere),
        }

    def _described(self, variable: Any, key: str) -> VariableInfo:
        """Return the description of a variable. A weight has the path that Keras gives it."""
        return replace(described(self._weights.get(id(variable), variable)), key=key)

    def _saved(self, directory: Path, left_out: set[str]) -> SavedGraph:
        """Remove the checkpoint of a SavedModel, which holds no values. Keep the rest in memory."""
        reader = tf.train.load_checkpoint(str(directory / "variables" / "variables"))
        object_graph = reader.get_tensor(OBJECT_GRAPH_KEY)
        variable_keys = [_only_key(keys) for keys in state_keys(object_graph, _VARIABLES)]
        table_keys = _table_keys(state_keys(object_graph, _RESOURCES))
        known = {*variable_keys, *table_keys, OBJECT_GRAPH_KEY}
        unknown = ({*reader.get_variable_to_shape_map()} | left_out) - known
        if unknown:
            raise ExportError(
                "The endpoints depend on state that cannot be read at one point in time: "
                f"{sorted(unknown)}. Expected variables and lookup tables only."
            )
        shutil.rmtree(directory / "variables")
        key_of = dict(zip(map(id, self.variables), variable_keys, strict=True))
        count = len(self.measured)
        write_index(directory, self._index(key_of, table_keys), self._layers)
        files = {name: KeptFile.at(directory / name) for name in sorted(relative_files(directory))}
        fingerprint = files.pop(FINGERPRINT)
        fingerprint.known.path.unlink()
        return SavedGraph(
            files=files,
            fingerprint=fingerprint.content,
            object_graph=object_graph,
            measured_keys=[*variable_keys[:count], *table_keys],
            progress_keys=variable_keys[count:],
            steady=frozenset(key_of[id(item)] for item in self.lists.get(STEADY, ())),
            endpoints={
                name: endpoint_info(signature)
                for name, signature in signature_defs(files["saved_model.pb"].content).items()
            },
        )


@dataclass(frozen=True)
class Signature:
    """A signature that is not saved yet.

    Attributes:
        endpoint: The endpoint that it serves.
        trace: The trace that it calls.
        inputs: The names of its inputs, in the order of the endpoint's arguments.
    """

    endpoint: Endpoint
    trace: Any
    inputs: Sequence[str]


@dataclass(frozen=True)
class SavedGraph:
    """The files and keys that all SavedModels of one graph have in common.

    Attributes:
        files: The files that are the same in all of them, by relative path.
        fingerprint: The contents of a `fingerprint.pb`. Each SavedModel has its own,
            because it holds the hash of the checkpoint.
        object_graph: The checkpoint's string entry that describes the objects.
        measured_keys: The checkpoint keys of the measured variables, and then, for each
            table, of its keys and its values.
        progress_keys: The checkpoint keys of the other variables.
        steady: The checkpoint keys of variables that training is unlikely to change.
        endpoints: All signatures, by name.
    """

    files: Mapping[str, KeptFile]
    fingerprint: bytes
    object_graph: bytes
    measured_keys: Sequence[str]
    progress_keys: Sequence[str]
    steady: frozenset[str]
    endpoints: Mapping[str, EndpointInfo]


def _exported(reachable: Iterable[Any], tracked: Sequence[Any], traces: Sequence[Any]) -> list[Any]:
    """Return the resources that an endpoint captures, and those in `tracked`.

    Layers hold other resources, such as the counts of an `adapt`. Nobody can use these in
    a SavedModel.
    """
    captured = {id(tensor) for trace in traces for tensor in trace.captured_inputs}
    named = {id(item) for item in tracked}
    return [item for item in reachable if id(_handle(item)) in captured or id(item) in named]


@contextlib.contextmanager
def _portable(layers: Iterable[keras.Layer]) -> Iterator[None]:
    """Keep recurrent layers from using cuDNN, because a server without a GPU does not have it."""
    recurrent = [layer for layer in layers if getattr(layer, "use_cudnn", False)]
    wanted = [layer.use_cudnn for layer in recurrent]
    try:
        for layer in recurrent:
            layer.use_cudnn = False
        yield
    finally:
        for layer, use_cudnn in zip(recurrent, wanted, strict=True):
            layer.use_cudnn = use_cudnn


def _check_portable(name: str, traces: Iterable[Any]) -> None:
    """Raise an error if an endpoint calls Python code, because a SavedModel cannot hold it."""
    found = sorted({node.op for trace in traces for node in operations(trace)} & _IN_PYTHON)
    if found:
        raise ExportError(
            f"Endpoint '{name}' runs Python code ({', '.join(found)}). A SavedModel cannot hold "
            "it, so no other process could run it. Use `keras.ops` or TensorFlow's operations "
            "instead of `tf.py_function` and `tf.numpy_function`, or keep that code out of the "
            "endpoint."
        )


def _handle(resource: Any) -> Any:
    if isinstance(resource, tf.saved_model.Asset):
        return resource.asset_path
    return resource.resource_handle


def _only_key(keys: Mapping[str, str]) -> str:
    (key,) = keys.values()
    return key


def _table_keys(keys: Iterable[Mapping[str, str]]) -> list[str]:
    """Return two checkpoint keys per mutable table, for its keys and for its values.

    Other tables have no checkpoint keys.
    """
    return [f"{key}-{part}" for of_one in keys for key in of_one.values() for part in _PARTS]


def _unique(items: Iterable[Any]) -> list[Any]:
    return list({id(item): item for item in items}.values())
