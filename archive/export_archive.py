"""`ExportArchive`: register what to export, and write it as a SavedModel."""

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
        current_backend()
        self._registration = Registration()
        self._planner = Planner(self._registration)
        self._reuse = Reuse()

    @property
    def variables(self) -> list[Any]:
        """All variables of the tracked layers, as they have them now."""
        return self._registration.variables("variables")

    @property
    def trainable_variables(self) -> list[Any]:
        """Those of the tracked layers' variables that training changes."""
        return self._registration.variables("trainable_variables")

    @property
    def non_trainable_variables(self) -> list[Any]:
        """The other variables: statistics, seeds, and what is frozen."""
        return self._registration.variables("non_trainable_variables")

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
        self._registration.tracked.append(resource)

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
        registered = self._registration
        _check_name(name, [*registered.endpoints, *registered.collections])
        if kwargs:
            raise ExportValueError(
                f"Received {', '.join(sorted(kwargs))}. These options of Keras's archive are for "
                "the JAX backend; this archive runs on TensorFlow. Leave them out."
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
        _check_name(name, self._registration.endpoints)  # A collection may be replaced.
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
        plan = self._planner.plan(options)
        snapshot = plan.read().completed()
        with replacing(target) as staged:
            written = write(snapshot, staged, self._reuse)
        self._reuse = written.at(target)
        if verbose:
            print(_summary(plan, filepath))


def registration_of(archive: ExportArchive) -> Registration:
    """What was registered on an archive, for those who export it in another way than it does."""
    return archive._registration


def _check_name(name: object, taken: Iterable[str]) -> None:
    if not isinstance(name, str):
        raise ExportTypeError(f"Received name={name!r} of type {type(name)}. Expected a string.")
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
    if name in taken:
        raise ExportValueError(f"Endpoint name '{name}' is already taken. Choose another.")


def _summary(plan: Plan, path: str | os.PathLike[str]) -> str:
    described = [
        "\n".join([f"* Endpoint '{name}'", *_without_captures(text).split("\n")[1:]])
        for name, text in plan.graph.describe().items()
    ]
    endpoints = "\n\n".join(described)
    return f"Saved artifact at '{path}'. The following endpoints are available:\n\n{endpoints}"


def _without_captures(signature: str) -> str:
    return signature.partition("\nCaptures:")[0]  # One line for each variable, without its name.
