"""`ExportArchive` registers what to export and writes it as a SavedModel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from ._tensorflow import Trackable
from .backends.backend import current_backend
from .errors import ExportTypeError, ExportValueError, error_like
from .graph.endpoint import Endpoint
from .graph.plan import Plan, Planner
from .graph.registration import VARIABLE_LISTS, Registration, check_variables
from .graph.signatures import tensor_specs
from .savedmodel.replacing import check_replaceable, replacing
from .state.models import is_built
from .store.paths import local_path
from .writer import Reuse, write

_RESERVED = {*VARIABLE_LISTS, "signatures"}


class ExportArchive:
    """Writes SavedModels for serving, as a drop-in replacement for `keras.export.ExportArchive`.

    Register what to serve with `track` and `add_endpoint`, then call `write_out`.
    Unlike Keras's archive, this one stores each variable once. Repeated `write_out`
    calls reuse the traced graph, so they cost about as much as writing the variables.
    The graph is made again if endpoints, tracked objects, the set of variables, a
    `trainable` flag, or the vocabulary of a layer have changed.

    Args:
        format: String. The format to write. Only ``"saved_model"`` is supported.

    Raises:
        BackendError: If Keras runs neither on the TensorFlow nor on the JAX backend.
        ExportValueError: If `format` is not ``"saved_model"``.

    Examples:
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
        current_backend()
        self._registration = Registration()
        self._planner = Planner(self._registration)
        self._reuse = Reuse()

    @property
    def variables(self) -> list[Any]:
        """The current variables of all tracked layers, each once."""
        return self._registration.variables("variables")

    @property
    def trainable_variables(self) -> list[Any]:
        """The current trainable variables of all tracked layers."""
        return self._registration.variables("trainable_variables")

    @property
    def non_trainable_variables(self) -> list[Any]:
        """The other current variables, such as statistics, seeds and frozen weights."""
        return self._registration.variables("non_trainable_variables")

    def track(self, resource: Any) -> None:
        """Add the variables and lookup tables of an object to the artifact.

        Variables and tables that an endpoint uses are usually found without this call.
        Track a layer or model to get the lists `variables`, `trainable_variables` and
        `non_trainable_variables` on the loaded object. Track a table if `write_out`
        reports that an endpoint uses a table that is not part of the archive.

        Args:
            resource: Keras layer, Keras model or TensorFlow trackable object. The object
                to track, such as a lookup table. A layer or model must be built.

        Raises:
            ExportValueError: If `resource` is neither of these, or is a layer that has
                not been built.
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
        self._registration.tracked.append(resource)

    def add_endpoint(
        self,
        name: str,
        fn: Callable[..., Any],
        input_signature: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Register a function to serve. The first endpoint also becomes `serving_default`.

        Args:
            name: String. The name of the method and of the signature. It must be a
                Python identifier that does not start with an underscore.
            fn: Function. It takes and returns tensors, which may be nested in lists,
                tuples and dicts.
            input_signature: List or tuple. One item per positional argument of `fn`. Each
                item is a `tf.TensorSpec`, `keras.InputSpec`, `KerasTensor` or tensor,
                or a nested structure of these, as `fn` takes it. Pass None if `fn` is a
                `tf.function` that has been called. It is then exported with the shapes
                that it was called with, and is not traced again when a layer changes.
            **kwargs: Options of Keras's archive. On JAX, `jax2tf_kwargs` and `is_static`
                are accepted, and have no effect. Other options are refused.

        Returns:
            The `tf.function` that wraps `fn`. Other endpoints may call it.

        Raises:
            ExportValueError: If the name is already taken or is not an identifier, if
                an option is refused, or if there is no signature and `fn` is not a traced
                `tf.function`.
            ExportTypeError: If the name is not a string, if `fn` is not callable, or if
                `input_signature` is not a list or tuple of specs.

        Examples:
            >>> import keras
            >>> from keras_export_callbacks import ExportArchive
            >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
            >>> archive = ExportArchive()
            >>> double = archive.add_endpoint("double", lambda x: 2 * model(x), [model.inputs[0]])
            >>> double([[1.0, 2.0, 3.0]]).shape
            TensorShape([1, 2])
        """
        registered = self._registration
        _check_name(name, [*registered.endpoints, *registered.collections])
        if others := sorted(kwargs.keys() - current_backend().ignored_options):
            raise ExportValueError(
                f"Received the options {', '.join(others)}. Keras's archive has options on the JAX "
                "backend only: jax2tf_kwargs and is_static. This archive needs none. Leave them "
                "out."
            )
        specs = None if input_signature is None else tensor_specs(input_signature)
        if specs is not None and not callable(fn):
            raise ExportTypeError(f"Received fn={fn!r} for endpoint '{name}'. Expected a function.")
        endpoint = Endpoint.of(name, fn, specs)
        self._registration.endpoints[name] = endpoint
        return endpoint.returned

    def track_and_add_endpoint(
        self, name: str, resource: Any, input_signature: Any, **kwargs: Any
    ) -> Any:
        """Track a layer or model, and serve its `__call__`.

        Args:
            name: String. The name of the endpoint, as in `add_endpoint`.
            resource: Keras layer or Keras model. The object to track and serve. It must be
                built.
            input_signature: List or tuple. The specs of the inputs, as in `add_endpoint`.
            **kwargs: Options of Keras's archive, as in `add_endpoint`.

        Returns:
            The `tf.function` that calls the resource.

        Raises:
            ExportError: If the resource cannot be tracked or called, or for the reasons
                that `add_endpoint` lists.
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
        """Export a collection of variables as an attribute of the loaded object.

        A list or set is read when the archive is written. Variables that you add to it
        later are therefore exported too. `optimizer.variables` returns a new list each
        time. Call this method after the optimizer is built, or call it again then.

        Args:
            name: String. The name of the attribute. It must be a Python identifier that
                does not start with an underscore.
            variables: List, tuple or set. The Keras or TensorFlow variables.

        Raises:
            ExportValueError: If the name is already taken or is not an identifier, or
                if `variables` is not a list, tuple or set of variables.
            ExportTypeError: If the name is not a string.

        Examples:
            >>> import keras
            >>> from keras_export_callbacks import ExportArchive
            >>> optimizer = keras.optimizers.Adam()
            >>> ExportArchive().add_variable_collection("optimizer", optimizer.variables)
        """
        _check_name(name, self._registration.endpoints)  # A collection may replace another.
        if not isinstance(variables, list | tuple | set):
            raise ExportValueError(
                f"Received variables={variables!r} of type {type(variables)} for collection "
                f"'{name}'. Expected a list, tuple or set of variables."
            )
        check_variables(name, variables)
        self._registration.collections[name] = variables

    def write_out(
        self,
        filepath: str | os.PathLike[str],
        options: tf.saved_model.SaveOptions | None = None,
        verbose: bool = True,
    ) -> None:
        """Write the SavedModel, in the place of an existing one.

        Args:
            filepath: String or `PathLike`. The path of the directory to write. A SavedModel
                in it is replaced as a whole.
            options: `tf.saved_model.SaveOptions`. The options, as for
                `tf.saved_model.save`.
            verbose: Bool. Whether to print the endpoints.

        Raises:
            ExportValueError: If there are no endpoints, or if `filepath` holds something
                that is not a SavedModel.
            ExportError: If an endpoint cannot be traced, or uses something that cannot
                be exported.
        """
        target = Path(os.path.realpath(local_path(filepath)))
        check_replaceable(target)
        plan = self._planner.plan(options)
        snapshot = plan.read().completed()
        with replacing(target) as staged:
            written = write(snapshot, staged, self._reuse)
        self._reuse = written.at(target)
        if verbose:
            print(_summary(plan, filepath))


def registration_of(archive: ExportArchive) -> Registration:
    """Return the registration of an archive, for code that exports it without `write_out`."""
    return archive._registration


def _check_name(name: object, taken: Iterable[str]) -> None:
    if not isinstance(name, str):
        raise ExportTypeError(f"Received name={name!r} of type {type(name)}. Expected a string.")
    if not name.isidentifier() or name.startswith("_"):
        raise ExportValueError(
            f"Received name={name!r}. Expected a Python identifier that does not start with "
            "an underscore, because it becomes a method or attribute of the loaded object."
        )
    if name in _RESERVED:
        raise ExportValueError(
            f"The name '{name}' is already taken, because every loaded object has an attribute of "
            "that name. Choose another name."
        )
    if name in taken:
        raise ExportValueError(f"The name '{name}' is already taken. Choose another name.")


def _summary(plan: Plan, path: str | os.PathLike[str]) -> str:
    described = [
        "\n".join([f"* Endpoint '{name}'", *_without_captures(text).split("\n")[1:]])
        for name, text in plan.graph.describe().items()
    ]
    endpoints = "\n\n".join(described)
    return f"Saved artifact at '{path}'. The following endpoints are available:\n\n{endpoints}"


def _without_captures(signature: str) -> str:
    return signature.partition("\nCaptures:")[0]  # One unnamed line per variable.
