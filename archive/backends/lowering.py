"""A function of JAX → one that TensorFlow traces: a StableHLO module, called with mirrors.

Every variable that the function reads is an argument of the module. What it reads
is found by running it in a scope that records, so that no variable is baked in.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import keras
import tensorflow as tf
from jax import export

from .._tensorflow import call_module
from ..errors import UntrackedError
from ._jax import portable_artifact

# What a server may run on. The module has the code for each.
PLATFORMS = ("cpu", "cuda")

# Tracing finds variables that the last one did not know of. More rounds than this never end.
_ROUNDS = 8


def lowered(
    fn: Callable[..., Any], signature: Sequence[Any], mirror: Callable[[keras.Variable], Any]
) -> Callable[..., Any]:
    """A function of TensorFlow that computes what `fn` does.

    Args:
        fn: takes and returns arrays of JAX, nested as they may be.
        signature: one structure of `tf.TensorSpec` per argument.
        mirror: gives the `tf.Variable` that stands for a variable of Keras.
    """

    def call(*args: Any) -> Any:
        variables: list[keras.Variable] = []
        for _ in range(_ROUNDS):
            module = _Module(fn, signature, variables)
            if not module.missed:
                return module.call(args, mirror)
            variables = [*variables, *module.missed]
        raise UntrackedError("The endpoint makes variables whenever it is called.")

    return call


class _Recording(keras.StatelessScope):  # type: ignore[misc]  # Keras has no types.
    """Takes note of the variables that are read and were not given."""

    def __init__(self, mapping: Any) -> None:
        super().__init__(mapping)
        self.missed: dict[int, keras.Variable] = {}

    def get_current_value(self, variable: keras.Variable) -> Any:
        value = super().get_current_value(variable)
        if value is None:
            self.missed[id(variable)] = variable
        return value


class _Module:
    """A function lowered for the variables that it is known to read.

    Attributes:
        missed: the variables that it read and that were not known.
    """

    def __init__(
        self, fn: Callable[..., Any], signature: Sequence[Any], variables: Sequence[keras.Variable]
    ) -> None:
        self.missed: list[keras.Variable] = []
        self._fn = fn
        self._variables = variables
        self._changed: list[int] = []
        self._structure: Any = None
        shapes = [_shape(variable.shape, variable.dtype) for variable in variables]
        function = jax.jit(self._stateless)
        self._exported = export.export(function, platforms=PLATFORMS)(shapes, *_shapes(signature))

    def _stateless(self, values: Sequence[Any], *args: Any) -> Any:
        scope = _Recording(zip(self._variables, values, strict=True))
        before = dict(scope.state_mapping)
        with scope:
            outputs = self._fn(*args)
        known = {id(variable) for variable in self._variables}
        self.missed = [item for key, item in scope.missed.items() if key not in known]
        state = scope.state_mapping
        self._changed = [
            place
            for place, variable in enumerate(self._variables)
            if state[id(variable)] is not before[id(variable)]
        ]
        flat = tf.nest.flatten(outputs)
        self._structure = tf.nest.pack_sequence_as(outputs, [item is None for item in flat])
        values = [state[id(self._variables[place])] for place in self._changed]
        return [jax.numpy.asarray(item) for item in flat if item is not None], values

    def call(self, args: Sequence[Any], mirror: Callable[[keras.Variable], Any]) -> Any:
        """Call the module in a trace of TensorFlow, and assign what it changes."""
        exported = self._exported
        mirrors = [mirror(variable) for variable in self._variables]
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
        count = len(results) - len(self._changed)
        for place, value in zip(self._changed, results[count:], strict=True):
            mirrors[place].assign(tf.cast(value, mirrors[place].dtype))
        left = iter(results[:count])
        flat = [None if is_none else next(left) for is_none in tf.nest.flatten(self._structure)]
        return tf.nest.pack_sequence_as(self._structure, flat)


def _partial_shape(shape: Sequence[Any]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]


def _shapes(signature: Sequence[Any]) -> list[Any]:
    """`signature` as JAX has it, each free axis with a name; first axes are all the batch."""
    scope = export.SymbolicScope()
    names = _names()

    def shape_of(spec: tf.TensorSpec) -> Any:
        axes = [
            str(size) if size is not None else "batch" if place == 0 else next(names)
            for place, size in enumerate(spec.shape)
        ]
        shape = export.symbolic_shape(", ".join(axes), scope=scope) if axes else ()
        dtype = jax.dtypes.canonicalize_dtype(spec.dtype.as_numpy_dtype)
        return _shape(shape, dtype)

    return list(tf.nest.map_structure(shape_of, list(signature)))


def _shape(shape: Sequence[Any], dtype: Any) -> Any:
    kind: Any = jax.ShapeDtypeStruct  # Its arguments have no types.
    return kind(tuple(shape), dtype)


def _names() -> Iterator[str]:
    letters = string.ascii_lowercase
    return (
        "".join(name)
        for count in itertools.count(1)
        for name in itertools.product(letters, repeat=count)
    )
