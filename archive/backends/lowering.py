"""A function of JAX → one that TensorFlow traces, or one compiled program.

JAX compiles functions without a state. Every variable that a function reads becomes
an argument, or else its value would be part of the program. The variables are found
by running the function in a scope that takes note of what is read.
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
from ._jax import held_array, portable_artifact

# What a server may run on. A module has the code for each.
PLATFORMS = ("cpu", "cuda")

# Each round may read variables that the last one did not. More rounds than this never end.
_ROUNDS = 8


def lowered(
    fn: Callable[..., Any], signature: Sequence[Any], mirror: Callable[[keras.Variable], Any]
) -> Callable[..., Any]:
    """A function that TensorFlow traces as one call of a StableHLO module.

    Args:
        fn: takes and returns arrays of JAX, nested as they may be.
        signature: one structure of `tf.TensorSpec` per argument.
        mirror: gives the `tf.Variable` that stands for a variable of Keras.
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

    # TensorFlow names inputs by the parameters, and takes them as keywords of a loaded function.
    parameters = [*inspect.signature(fn).parameters.values()][: len(signature)]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def compiled(fn: Callable[..., Any], args: Sequence[Any]) -> Callable[[], Any]:
    """A function that computes ``fn(*args)`` with the live variables, and changes none.

    Args:
        fn: takes and returns arrays of JAX, nested as they may be.
        args: structures of NumPy arrays.
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
    """The function for one signature.

    Each free axis may have a size of its own. If the function cannot be traced so, an axis has
    the same size in all arguments. A model that takes tokens and their mask needs this.
    """
    for spec in tf.nest.flatten(signature):
        _check(spec)
    try:
        return _Stateless(fn, _shapes(signature))
    except jax.errors.TracerArrayConversionError as error:
        raise ExportTypeError(
            "On JAX, the function of an endpoint gets arrays of JAX. Operations of TensorFlow and "
            "NumPy cannot take these. Use `keras.ops` or `jax.numpy`. Or call the function that "
            "`add_endpoint` returned in a `tf.function` of your own, and register that with an "
            "`input_signature`."
        ) from error
    except Exception:
        if not _share_axes(signature):
            raise
        with contextlib.suppress(Exception):
            return _Stateless(fn, _shapes(signature, alike=True))
        raise


class _Recording(keras.StatelessScope):  # type: ignore[misc]  # Keras has no types.
    """Takes note of the variables that are read or assigned and were not given."""

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
    """A function whose variables are its first argument, and what it changes its second result.

    Args:
        fn: takes and returns arrays of JAX.
        shapes: one structure of `jax.ShapeDtypeStruct` per argument.

    Attributes:
        variables: those that the function reads.
        changed: the places of those among them that it changes.
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
        """What `trace` makes of the function and the shapes of its arguments.

        The function may read other variables in each trace. It is traced until it misses none.
        """
        for _ in range(_ROUNDS):
            traced = trace(self.stateless, self._variable_shapes(), *self._shapes)
            if not self._missed:
                return traced
            self.variables += self._missed
        raise UntrackedError(
            "The endpoint makes variables whenever it is called. Make them once, outside of it."
        )

    def stateless(self, values: Sequence[Any], *args: Any) -> Any:
        """Call the function with values of its variables; return outputs and changed values."""
        scope = _Recording(zip(self.variables, values, strict=True))
        given = dict(scope.state_mapping)
        with scope:
            outputs = self._fn(*args)
            flat = tf.nest.flatten(outputs)
            # An output may be a variable, which has its value in this scope only.
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
        """Outputs as the function nests them."""
        left = iter(outputs)
        flat = [None if is_none else next(left) for is_none in tf.nest.flatten(self._structure)]
        return tf.nest.pack_sequence_as(self._structure, flat)

    def _variable_shapes(self) -> list[Any]:
        return [_shape(variable.shape, variable.dtype) for variable in self.variables]


def _exported(function: Callable[..., Any], *shapes: Any) -> Any:
    """A function as a `jax.export.Exported`."""
    return export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)


def _partial_shape(shape: Sequence[Any]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]


def _shapes(signature: Sequence[Any], alike: bool = False) -> list[Any]:
    """`signature` as JAX has it, with a name for each free axis.

    All free first axes are the batch. With `alike`, the other axes are named by their places.
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
    """Whether several arguments have a free axis, apart from the batch, at the same place."""
    places = [
        place
        for spec in tf.nest.flatten(signature)
        for place, size in enumerate(spec.shape)
        if place and size is None
    ]
    return len(set(places)) < len(places)


def _check(spec: tf.TensorSpec) -> None:
    """Raise an error if JAX cannot have such an argument."""
    if spec.dtype == tf.string:
        raise ExportTypeError(
            f"Received {spec}. JAX has no strings. Register an endpoint that takes numbers, call "
            "the function that `add_endpoint` returned in a `tf.function` that takes strings, and "
            "register that with an `input_signature`."
        )
    if spec.shape.rank is None:
        raise ExportValueError(f"Received {spec}. Expected a spec with a known number of axes.")


def _shape_of(array: Any) -> Any:
    return _shape(array.shape, array.dtype)


def _shape(shape: Sequence[Any], dtype: Any) -> Any:
    kind: Any = jax.ShapeDtypeStruct  # Its arguments have no types.
    return kind(tuple(shape), jax.dtypes.canonicalize_dtype(dtype))


def _names() -> Iterator[str]:
    letters = string.ascii_lowercase
    return (
        "".join(name)
        for count in itertools.count(1)
        for name in itertools.product(letters, repeat=count)
    )
