"""`ExportArchive`: what to export, and the one place that turns it into a SavedModel."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from ._tensorflow import OBJECT_GRAPH_KEY, Trackable, fingerprint_for
from .backends.tensorflow import Reading, StateReader
from .errors import BackendError, ExportTypeError, ExportValueError, error_like
from .graph.endpoint import Endpoint
from .graph.host_state import find_host_state
from .graph.model_call import ModelCall
from .graph.servable import FINGERPRINT, STEADY, SavedGraph, ServableGraph
from .graph.signatures import guesses_dtypes, model_signature, tensor_specs
from .parity.probe import Probe
from .savedmodel.bundles import BundleWriter
from .savedmodel.replacing import check_replaceable, replacing
from .savedmodel.shards import DIRECTORY
from .state.identities import Identities
from .state.models import has_declared_inputs, is_built
from .store.files import FileInfo, KnownFile
from .store.paths import local_path
from .store.record import EndpointInfo, ExportRecord

# The attributes of a revived artifact that hold the variables of what was tracked.
VARIABLE_LISTS = ("variables", "trainable_variables", STEADY)

_RESERVED = {*VARIABLE_LISTS, "signatures"}


def check_backend() -> None:
    """Raise unless Keras runs on TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        raise BackendError(
            f"Keras runs on the {keras.backend.backend()!r} backend. Expected 'tensorflow': "
            "set the environment variable KERAS_BACKEND=tensorflow before importing keras."
        )


@dataclass
class _Plan:
    """A traced graph and what every export of it shares."""

    graph: ServableGraph
    token: _Token
    options: dict[str, Any] | None
    measured: StateReader
    progress: StateReader
    saved: SavedGraph | None = None
    probe: Probe | None = None


@dataclass(frozen=True)
class Snapshot:
    """The state to export, read at one point in time, or at two.

    Attributes:
        plan: what to export.
        measured: the weights and tables.
        progress: the other state: seeds, and that of optimizers. None until
            `ExportArchive.completed`.
    """

    plan: _Plan
    measured: Reading
    progress: Reading | None = None

    @property
    def size(self) -> int:
        """The memory that it takes at most, in bytes."""
        return self.measured.size + (self.progress.size if self.progress else 0)


@dataclass(frozen=True)
class Written:
    """A SavedModel as it was written.

    Attributes:
        files: size and digest of each file, by relative path.
        endpoints: its signatures by name.
        collections: number of variables in each collection, by name.
        graph_reused: whether only the variables had to be written.
    """

    files: Mapping[str, FileInfo]
    endpoints: Mapping[str, EndpointInfo]
    collections: Mapping[str, int]
    graph_reused: bool


class ExportArchive:
    """Write SavedModels for serving; a drop-in for `keras.export.ExportArchive`.

    Register what to serve with `track` and `add_endpoint`, then `write_out`.
    Unlike Keras's, it stores each variable once, and writing again costs about
    what writing the variables costs, because the traced graph is kept. It is
    traced again when endpoints, tracked objects, the set of variables, a
    `trainable` flag, or the vocabulary of a layer changed.

    Args:
        format: ``"saved_model"``, the only one; Keras's archive knows more.

    Raises:
        BackendError: Keras runs on another backend than TensorFlow.
        ExportValueError: `format` is another one.

    Example:

    >>> import keras, tensorflow as tf
    >>> from keras_export_callbacks import ExportArchive
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> archive = ExportArchive()
    >>> archive.track(model)
    >>> serve = archive.add_endpoint(
    ...     "serve", model.call, [keras.InputSpec(shape=(None, 3), dtype="float32")]
    ... )
    >>> archive.write_out("artifact", verbose=False)
    >>> revived = tf.saved_model.load("artifact")
    >>> revived.serve(tf.ones((4, 3))).shape
    TensorShape([4, 2])
    """

    def __init__(self, format: str = "saved_model") -> None:  # noqa: A002 (Keras's name)
        if format != "saved_model":
            raise ExportValueError(f"Received format={format!r}. Expected 'saved_model'.")
        check_backend()
        self._endpoints: dict[str, Endpoint] = {}
        self._collections: dict[str, Collection[Any]] = {}
        self._tracked: list[Any] = []
        self._plan: _Plan | None = None
        self._bundles = BundleWriter()
        self._last_saved: SavedGraph | None = None

    @property
    def variables(self) -> list[Any]:
        """All variables of the tracked layers, as they have them now."""
        return self._variables("variables")

    @property
    def trainable_variables(self) -> list[Any]:
        """Those of the tracked layers' variables that training changes."""
        return self._variables("trainable_variables")

    @property
    def non_trainable_variables(self) -> list[Any]:
        """The other variables: statistics, seeds, and what is frozen."""
        return self._variables("non_trainable_variables")

    def track(self, resource: Any) -> None:
        """Make the variables and lookup tables of an object part of the artifact.

        What an endpoint reads is found by itself. Tracking is needed for the
        three variable lists on the revived object, and for objects that an
        endpoint reaches in a way that cannot be followed.

        Args:
            resource: a built layer or model, or any TensorFlow trackable object,
                such as a lookup table.

        Raises:
            ExportValueError: it is neither, or a layer that is not built.
        """
        if isinstance(resource, keras.Layer) and not is_built(resource):
            raise ExportValueError(
                f"Layer '{resource.name}' has not been built, so it has no variables to export. "
                "Call it on data, or call its `build(input_shape)`, before `track`."
            )
        if not isinstance(resource, keras.Layer | Trackable):
            raise ExportValueError(
                f"Received resource={resource!r} of type {type(resource)}. Expected a Keras "
                "`Layer` or `Model`, or a TensorFlow trackable object such as a lookup table."
            )
        self._tracked.append(resource)

    def add_endpoint(
        self,
        name: str,
        fn: Callable[..., Any],
        input_signature: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Register a function to serve; the first one is also `serving_default`.

        Args:
            name: the name of the method and signature, a Python identifier.
            fn: takes and returns tensors, or these nested in lists, tuples and dicts.
            input_signature: a list with one item per positional argument of
                `fn`: `tf.TensorSpec`, `keras.InputSpec`, `KerasTensor` or
                tensor, nested as `fn` takes them. None for a `tf.function` that
                has been called: it is exported with the shapes it was called
                with, and is never traced anew when a layer changes later.
            **kwargs: refused; Keras has options here for other backends.

        Returns:
            The `tf.function` that wraps `fn`, which other endpoints may call.

        Raises:
            ExportValueError: the name is taken or not an identifier, or there is
                no signature and `fn` was not traced.
            ExportTypeError: `fn` cannot be called, or the signature holds
                something that is no spec.

        Example:

        >>> import keras
        >>> from keras_export_callbacks import ExportArchive
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> archive = ExportArchive()
        >>> double = archive.add_endpoint("double", lambda x: 2 * model(x), [model.inputs[0]])
        >>> double([[1.0, 2.0, 3.0]]).shape
        TensorShape([1, 2])
        """
        self._check_name(name)
        if kwargs:
            raise ExportValueError(
                f"Received {', '.join(sorted(kwargs))}. These options of Keras's archive are for "
                "the JAX backend; this archive runs on TensorFlow. Leave them out."
            )
        specs = None if input_signature is None else tensor_specs(input_signature)
        if specs is not None and not callable(fn):
            raise ExportTypeError(f"Received fn={fn!r} for endpoint '{name}'. Expected a function.")
        endpoint = Endpoint.of(name, fn, specs)
        self._endpoints[name] = endpoint
        return endpoint.returned

    def track_and_add_endpoint(
        self, name: str, resource: Any, input_signature: Any, **kwargs: Any
    ) -> Any:
        """`track` a layer or model and serve its `__call__`.

        Args:
            name: as for `add_endpoint`.
            resource: a built layer or model.
            input_signature: as for `add_endpoint`.
            **kwargs: refused, as by `add_endpoint`.

        Returns:
            The `tf.function` that calls the resource.
        """
        self.track(resource)
        try:
            call = resource.__call__
        except AttributeError as error:
            raise error_like(error)(
                f"Received resource={resource!r} of type {type(resource)}, which cannot be called. "
                "Expected a layer or model."
            ) from error
        return self.add_endpoint(name, call, input_signature, **kwargs)

    def add_variable_collection(self, name: str, variables: Iterable[Any]) -> None:
        """Keep a list of variables under a name on the revived object.

        A list or set is exported as it is when the archive is written, so what you
        append to it later is exported, too. `optimizer.variables` is a new list each
        time: add it again, or add it once the optimizer is built.

        Args:
            name: the attribute's name, a Python identifier.
            variables: a list, tuple or set of Keras or TensorFlow variables.

        Raises:
            ExportValueError: the name is taken or not an identifier, or
                something in `variables` is no variable.

        Example:

        >>> import keras
        >>> from keras_export_callbacks import ExportArchive
        >>> optimizer = keras.optimizers.Adam()
        >>> ExportArchive().add_variable_collection("optimizer", optimizer.variables)
        """
        self._check_name(name, taken=self._endpoints)
        if not isinstance(variables, list | tuple | set):
            raise ExportValueError(
                f"Received variables={variables!r} of type {type(variables)} for collection "
                f"'{name}'. Expected a list, tuple or set of variables."
            )
        _check_variables(name, variables)
        self._collections[name] = variables

    def write_out(
        self,
        filepath: str | os.PathLike[str],
        options: tf.saved_model.SaveOptions | None = None,
        verbose: bool = True,
    ) -> None:
        """Write the SavedModel, replacing as a whole one that is already there.

        Args:
            filepath: the directory to write.
            options: as for `tf.saved_model.save`.
            verbose: print the endpoints.

        Raises:
            ExportValueError: there are no endpoints, one cannot be traced, or
                `filepath` holds something that is no SavedModel.
        """
        target = Path(os.path.realpath(local_path(filepath)))
        check_replaceable(target)
        snapshot = self.completed(self.snapshot(options))
        with replacing(target) as staged:
            self.write(snapshot, staged)
        self.moved(target)
        if verbose:
            print(self._summary(filepath))

    def trace(self, options: tf.saved_model.SaveOptions | None = None) -> None:
        """Trace the endpoints if that has to be done, which runs the layers' code.

        Raises:
            ExportValueError: there are no endpoints, or one cannot be traced.
        """
        if not self._endpoints:
            raise ExportValueError(
                "No endpoints have been set yet. Register one with `add_endpoint` first."
            )
        wanted = _content(options)
        if self._plan is not None:
            token = self._token(self._plan.graph)
            if self._plan.token == token and self._plan.options == wanted:
                return
            if self._plan.token.behaviour != token.behaviour:
                self._endpoints = {
                    name: endpoint.renewed() for name, endpoint in self._endpoints.items()
                }
        endpoints = list(self._endpoints.values())
        graph = ServableGraph(endpoints, self._lists(), self._tracked, options)
        self._plan = _Plan(
            graph,
            self._token(graph),
            wanted,
            measured=StateReader(graph.measured, graph.tables),
            progress=StateReader(graph.progress, []),
        )

    def snapshot(self, options: tf.saved_model.SaveOptions | None = None) -> Snapshot:
        """Read the weights now, on the thread that trains. `completed` reads the rest.

        Validation may run on weights that are put in for it, and it moves the seeds
        of some layers. A version holds the weights that were measured, and the seeds
        and the optimizer state that training goes on with.

        Raises:
            ExportValueError: as `trace`.
        """
        self.trace(options)
        assert self._plan is not None
        return Snapshot(self._plan, self._plan.measured.read())

    def completed(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with all other state as it is now, on the thread that trains."""
        return replace(snapshot, progress=snapshot.plan.progress.read())

    def probe(self, sample_inputs: Any) -> Probe:
        """The endpoints to compare with the artifact, `trace`d, and inputs for them.

        Raises:
            ExportValueError: no inference endpoint takes `sample_inputs`.
        """
        self.trace()
        assert self._plan is not None
        probe = self._plan.probe
        if probe is None or probe.sample_inputs is not sample_inputs:
            probe = self._plan.probe = Probe(self._plan.graph, sample_inputs)
        return probe

    def write(
        self,
        snapshot: Snapshot,
        directory: Path,
        earlier: Callable[[], ExportRecord | None] = lambda: None,
    ) -> Written:
        """Write a `completed` snapshot as a SavedModel into an empty directory; on any thread.

        Snapshots are written one at a time. Variables that equal those of the
        last one are linked; or those of the sound version that `earlier` gives,
        if the last one is gone or there was none.
        """
        plan = snapshot.plan
        reused = plan.saved is not None
        if plan.saved is None:
            # First, because saving takes seconds, in which there may be more snapshots.
            plan.measured.trace()
            plan.progress.trace()
            plan.saved = plan.graph.save(directory)
        else:
            for name, file in plan.saved.files.items():
                file.put(directory / name)
        saved = plan.saved
        (directory / "assets").mkdir(exist_ok=True)
        assert snapshot.progress is not None
        tensors = {
            **dict(zip(saved.measured_keys, snapshot.measured.tensors(), strict=True)),
            **dict(zip(saved.progress_keys, snapshot.progress.tensors(), strict=True)),
            OBJECT_GRAPH_KEY: tf.constant(saved.object_graph),
        }
        files = self._bundles.write(directory, tensors, saved.steady, earlier)
        files |= {name: file.known.info for name, file in saved.files.items()}
        files[FINGERPRINT] = _write_fingerprint(saved.fingerprint, directory)
        self._last_saved = saved
        return Written(
            files=files,
            endpoints=saved.endpoints,
            collections={
                name: len(variables)
                for name, variables in plan.graph.lists.items()
                if name not in VARIABLE_LISTS
            },
            graph_reused=reused,
        )

    def moved(self, directory: Path) -> None:
        """What was written last was renamed to `directory`; link from there from now on."""
        self._bundles.moved(directory)
        if self._last_saved is not None:
            for name, file in self._last_saved.files.items():
                file.moved((directory / name).parent)

    def _variables(self, attribute: str) -> list[Any]:
        layers = [item for item in self._tracked if isinstance(item, keras.Layer)]
        found = [variable for layer in layers for variable in getattr(layer, attribute)]
        return list({id(variable): variable for variable in found}.values())

    def _lists(self) -> dict[str, list[Any]]:
        for name, variables in self._collections.items():
            _check_variables(name, variables)  # They may have been added to.
        lists = {name: self._variables(name) for name in VARIABLE_LISTS}
        return lists | {name: list(variables) for name, variables in self._collections.items()}

    def _token(self, graph: ServableGraph) -> _Token:
        """What `graph` depends on; the same as before if it need not be traced again."""
        state = graph.host_state
        if state.resources:
            # A layer may have replaced its table, so look for it again.
            functions = [endpoint.function for endpoint in self._endpoints.values()]
            state = find_host_state([*self._tracked, *functions])
        collections = self._collections.items()
        return _Token(
            behaviour=Identities([*self._tracked, *state.dependencies()]),
            contents=Identities(
                [
                    *self._endpoints.values(),
                    # A variable can be frozen by itself; the others are those of the layers.
                    *self.trainable_variables,
                    *(item for name, variables in collections for item in (name, *variables)),
                ]
            ),
        )

    def take_collections(self, other: ExportArchive) -> bool:
        """Export the collections of `other` from now on, without tracing again.

        Only if `other` is what this is, registered again later: with the same
        endpoints and layers, and the same variables, more or less. Else its
        endpoints may use others of them than those here. Returns whether it is.
        """
        is_same = (
            list(self._endpoints) == list(other._endpoints)
            and self._tracked_layers() == other._tracked_layers()
            and all(
                _has_more_or_less(variables, other._collections.get(name, ()))
                for name, variables in self._collections.items()
            )
        )
        if is_same:
            self._collections = other._collections
        return is_same

    def _tracked_layers(self) -> Identities:
        return Identities([item for item in self._tracked if isinstance(item, keras.Layer)])

    def guessed(self) -> list[keras.Model]:
        """The models whose dtypes are a guess: nothing has told them yet."""
        return [model for model, _ in self._undeclared() if guesses_dtypes(model)]

    def has_other_dtypes(self) -> bool:
        """Whether a model is called with other dtypes than was known when it was registered."""
        return any(signature != model_signature(model) for model, signature in self._undeclared())

    def _undeclared(self) -> list[tuple[keras.Model, Any]]:
        """The models that do not record their dtypes, with their signatures."""
        return [
            (endpoint.fn.model, endpoint.signature)
            for endpoint in self._endpoints.values()
            if isinstance(endpoint.fn, ModelCall) and not has_declared_inputs(endpoint.fn.model)
        ]

    def _check_name(self, name: object, taken: Iterable[str] | None = None) -> None:
        if not isinstance(name, str):
            raise ExportTypeError(
                f"Received name={name!r} of type {type(name)}. Expected a string."
            )
        if not name.isidentifier() or name.startswith("_"):
            raise ExportValueError(
                f"Received name={name!r}. Expected a Python identifier that does not start with "
                "an underscore, because it becomes a method or attribute of the revived object."
            )
        if name in _RESERVED:
            raise ExportValueError(
                f"Name '{name}' is already taken: revived objects have an attribute of that name. "
                "Choose another."
            )
        if name in (taken if taken is not None else {*self._endpoints, *self._collections}):
            raise ExportValueError(f"Endpoint name '{name}' is already taken. Choose another.")

    def _summary(self, path: str | os.PathLike[str]) -> str:
        assert self._plan is not None
        described = [
            "\n".join([f"* Endpoint '{name}'", *_without_captures(text).split("\n")[1:]])
            for name, text in self._plan.graph.describe().items()
        ]
        endpoints = "\n\n".join(described)
        return f"Saved artifact at '{path}'. The following endpoints are available:\n\n{endpoints}"


@dataclass(frozen=True)
class _Token:
    """What a plan was made from.

    Attributes:
        behaviour: what the endpoints' code depends on; if it changed, they are
            traced again.
        contents: what else is in the artifact; if it changed, it is saved as a
            whole, with the functions that are already traced.
    """

    behaviour: Identities
    contents: Identities


def _check_variables(name: str, variables: Iterable[Any]) -> None:
    others = {
        type(item) for item in variables if not isinstance(item, keras.Variable | tf.Variable)
    }
    if others:
        raise ExportValueError(
            f"Received {sorted(map(str, others))} in collection '{name}'. Expected Keras or "
            "TensorFlow variables only."
        )


def _has_more_or_less(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Whether one of two collections has all variables of the other."""
    ours, theirs = set(map(id, one)), set(map(id, other))
    return ours <= theirs or theirs <= ours


def _without_captures(signature: str) -> str:
    return signature.partition("\nCaptures:")[0]  # One line for each variable, without its name.


def _content(options: tf.saved_model.SaveOptions | None) -> dict[str, Any] | None:
    """What `options` say now, to be compared with what they say later."""
    if options is None:
        return None
    names = [name for name in dir(options) if not name.startswith("_")]
    return {name: copy.copy(getattr(options, name)) for name in names}


def _write_fingerprint(content: bytes, directory: Path) -> FileInfo:
    index = (directory / DIRECTORY / "variables.index").read_bytes()
    path = directory / FINGERPRINT
    path.write_bytes(fingerprint_for(content, index))
    return KnownFile.at(path).info
