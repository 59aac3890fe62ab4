"""Turn a JAX function into a function that TensorFlow can trace, or into a compiled program.

JAX compiles functions that have no state. Every variable that a function reads must become
an argument. Otherwise its value would become a constant in the program. To find the
variables, the function runs in a scope that records what is read.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import keras
import tensorflow as tf
from jax import export

from .._tensorflow import call_module
from ..errors import ExportTypeError, ExportValueError, UntrackedError
from ._jax import held_array, plain_attention, portable_artifact

# The platforms that a server may run on. Each module has code for all of them.
PLATFORMS = ("cpu", "cuda")

# The function may read new variables each time it is traced. If it still does after this many
# traces, it makes variables in every call.
_ROUNDS = 8


def lowered(
    fn: Callable[..., Any], signature: Sequence[Any], mirror: Callable[[keras.Variable], Any]
) -> Callable[..., Any]:
    """Return a function that TensorFlow traces as one call of a StableHLO module.

    Args:
        fn: Function of JAX arrays. Its arguments and results may be nested.
        signature: One structure of `tf.TensorSpec`s per argument.
        mirror: Function that returns the `tf.Variable` that represents a Keras variable.
    """

    def call(*args: Any) -> Any:
        function = _for_signature(fn, signature)
        exported = function.settled(_exported)
        mirrors = [mirror(variable) for variable in function.variables]
        given = [*mirrors, *tf.nest.flatten(list(args))]
        kept = [
            tf.cast(given[place], exported.in_avals[place].dtype)
            for place in exported.module_kept_var_idx
        ]
        results = call_module(
            kept,
            portable_artifact(exported),
            version=exported.calling_convention_version,
            dtypes=[tf.dtypes.as_dtype(aval.dtype) for aval in exported.out_avals],
            shapes=[_partial_shape(aval.shape) for aval in exported.out_avals],
            platforms=exported.platforms,
        )
        count = len(results) - len(function.changed)
        for place, value in zip(function.changed, results[count:], strict=True):
            mirrors[place].assign(tf.cast(value, mirrors[place].dtype))
        return function.packed(results[:count])

    # TensorFlow names the inputs after the parameters. Loaded functions take them as keywords.
    parameters = [*inspect.signature(fn).parameters.values()][: len(signature)]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def compiled(fn: Callable[..., Any], args: Sequence[Any]) -> Callable[[], Any]:
    """Return a function that computes ``fn(*args)`` with the current values of the variables.

    It does not change any variable.

    Args:
        fn: Function of JAX arrays. Its arguments and results may be nested.
        args: One structure of NumPy arrays per argument.
    """
    function = _Stateless(fn, tf.nest.map_structure(_shape_of, list(args)))
    function.settled(jax.eval_shape)
    program = jax.jit(function.stateless)

    def call() -> Any:
        values = [held_array(variable) for variable in function.variables]
        outputs, _ = program(values, *args)
        return function.packed(outputs)

    return call


def _for_signature(fn: Callable[..., Any], signature: Sequence[Any]) -> _Stateless:
    """Return the function without state, for one signature.

    First, each free axis may have a different size. If the function cannot be traced in this
    way, free axes at the same place have the same size in all arguments. A model that takes
    tokens and their mask needs this.
    """
    for spec in tf.nest.flatten(signature):
        _check(spec)
    try:
        return _Stateless(fn, _shapes(signature))
    except jax.errors.TracerArrayConversionError as error:
        raise ExportTypeError(
            "On the JAX backend, the function of an endpoint receives JAX arrays. TensorFlow and "
            "NumPy operations cannot take them. Use `keras.ops` or `jax.numpy`. To use TensorFlow "
            "operations, write a `tf.function` that calls the function that `add_endpoint` "
            "returned, and register it as an endpoint with an `input_signature`."
        ) from error
    except Exception:
        if not _share_axes(signature):
            raise
        with contextlib.suppress(Exception):
            return _Stateless(fn, _shapes(signature, alike=True))
        raise


class _Recording(keras.StatelessScope):  # type: ignore[misc]  # Keras has no types.
    """A scope that records the variables that are used but are not in its mapping."""

    def __init__(self, mapping: Any) -> None:
        super().__init__(mapping)
        self.missed: dict[int, keras.Variable] = {}

    def get_current_value(self, variable: keras.Variable) -> Any:
        value = super().get_current_value(variable)
        if value is None:
            self.missed[id(variable)] = variable
        return value

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        variable, _ = update
        if id(variable) not in self.state_mapping:
            self.missed[id(variable)] = variable
        super().add_update(update)


class _Stateless:
    """A function without state, made from a function that uses Keras variables.

    It takes the values of the variables as its first argument. It returns the new values of
    the variables that change as its second result.

    Args:
        fn: Function of JAX arrays.
        shapes: One structure of `jax.ShapeDtypeStruct`s per argument.

    Attributes:
        variables: The variables that the function uses.
        changed: The positions in `variables` of those that the function changes.
    """

    def __init__(self, fn: Callable[..., Any], shapes: Sequence[Any]) -> None:
        self.variables: list[keras.Variable] = []
        self.changed: list[int] = []
        self._fn = fn
        self._shapes = shapes
        self._missed: list[keras.Variable] = []
        self._structure: Any = None
        jax.eval_shape(self.stateless, self._variable_shapes(), *shapes)
        self.variables += self._missed

    def settled(self, trace: Callable[..., Any]) -> Any:
        """Return what `trace` returns for the function and the shapes of its arguments.

        Each trace may use variables that were not known before. The function is traced again
        until all of them are known.

        Raises:
            UntrackedError: If the function makes new variables in every trace.
        """
        for _ in range(_ROUNDS):
            traced = trace(self.stateless, self._variable_shapes(), *self._shapes)
            if not self._missed:
                return traced
            self.variables += self._missed
        raise UntrackedError(
            "The endpoint creates new variables in every call. Create them once, outside of the "
            "endpoint."
        )

    def stateless(self, values: Sequence[Any], *args: Any) -> Any:
        """Call the function with some values of its variables.

        Returns:
            A list of the outputs, and a list of the new values of the changed variables.
        """
        scope = _Recording(zip(self.variables, values, strict=True))
        given = dict(scope.state_mapping)
        with scope, plain_attention():
            outputs = self._fn(*args)
            flat = tf.nest.flatten(outputs)
            # An output may be a variable. It has the right value only inside this scope.
            arrays = [jax.numpy.asarray(item) for item in flat if item is not None]
        self._missed = [variable for key, variable in scope.missed.items() if key not in given]
        state = scope.state_mapping
        self.changed = [
            place
            for place, variable in enumerate(self.variables)
            if state[id(variable)] is not given[id(variable)]
        ]
        self._structure = tf.nest.pack_sequence_as(outputs, [item is None for item in flat])
        changed = [state[id(self.variables[place])] for place in self.changed]
        return arrays, changed

    def packed(self, outputs: Sequence[Any]) -> Any:
        """Return a list of outputs in the structure that the function returns."""
        left = iter(outputs)
        flat = [None if is_none else next(left) for is_none in tf.nest.flatten(self._structure)]
        return tf.nest.pack_sequence_as(self._structure, flat)

    def _variable_shapes(self) -> list[Any]:
        return [_shape(variable.shape, variable.dtype) for variable in self.variables]


def _exported(function: Callable[..., Any], *shapes: Any) -> Any:
    """Return a function as a `jax.export.Exported`."""
    return export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)


def _partial_shape(shape: Sequence[Any]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]


def _shapes(signature: Sequence[Any], alike: bool = False) -> list[Any]:
    """Return JAX's shapes and dtypes for a signature, with a name for each free axis.

    Axes with the same name have the same size. A free first axis is always the batch.

    Args:
        signature: One structure of `tf.TensorSpec`s per argument.
        alike: Bool. With True, other free axes at the same place have the same name. With
            False, each has a name of its own.
    """
    scope = export.SymbolicScope()
    names = _names()

    def name(place: int) -> str:
        if place == 0:
            return "batch"
        return f"axis_{place}" if alike else next(names)

    def shape_of(spec: tf.TensorSpec) -> Any:
        axes = [name(place) if size is None else str(size) for place, size in enumerate(spec.shape)]
        shape = export.symbolic_shape(", ".join(axes), scope=scope) if axes else ()
        return _shape(shape, spec.dtype.as_numpy_dtype)

    return list(tf.nest.map_structure(shape_of, list(signature)))


def _share_axes(signature: Sequence[Any]) -> bool:
    """Return whether two arguments have a free axis at the same place, apart from the batch."""
    places = [
        place
        for spec in tf.nest.flatten(signature)
        for place, size in enumerate(spec.shape)
        if place and size is None
    ]
    return len(set(places)) < len(places)


def _check(spec: tf.TensorSpec) -> None:
    """Raise an error if JAX cannot take an argument like `spec`."""
    if spec.dtype == tf.string:
        raise ExportTypeError(
            f"Received {spec}, but JAX has no strings. Register an endpoint that takes numbers. "
            "Then write a `tf.function` that takes strings and calls the function that "
            "`add_endpoint` returned, and register it with an `input_signature`."
        )
    if spec.shape.rank is None:
        raise ExportValueError(f"Received {spec}. Expected a spec with a known number of axes.")


def _shape_of(array: Any) -> Any:
    return _shape(array.shape, array.dtype)


def _shape(shape: Sequence[Any], dtype: Any) -> Any:
    kind: Any = jax.ShapeDtypeStruct  # JAX gives no types for its arguments.
    return kind(tuple(shape), jax.dtypes.canonicalize_dtype(dtype))


def _names() -> Iterator[str]:
    letters = string.ascii_lowercase
    return (
        "".join(name)
        for count in itertools.count(1)
        for name in itertools.product(letters, repeat=count)
    )
