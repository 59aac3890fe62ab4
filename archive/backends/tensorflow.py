"""The TensorFlow backend. It reads variables in milliseconds, without a copy.

When a variable is assigned while somebody holds its old value, TensorFlow keeps the
old buffer and writes to another one. Reading is therefore free, and the values stay
the same while training continues. A snapshot takes memory only for the variables that
training changes while the snapshot is held. Variables that are updated in parts,
such as an embedding with sparse gradients, are an exception: TensorFlow copies them
when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import tensorflow as tf

from ..errors import ExportError
from .interface import Reading

# The number of variables that one traced call reads. TensorFlow optimizes a function when it runs
# for the first time. That takes a minute for 3,000 variables at once, but seconds in such parts.
_AT_ONCE = 500

# The bytes that TensorFlow needs for a string, besides its characters.
_STRING_BYTES = 24


# A trace reads the same variables that training changes.
reads_live_values = True

# Keras's archive has options for JAX only.
ignored_options: frozenset[str] = frozenset()

# A variable may be spread over workers, which then read it together.
reads_together = True


def stored(variable: keras.Variable) -> Any:
    """Return the `tf.Variable` inside a Keras variable.

    To TensorFlow, the two are different objects. A SavedModel with both would store
    the same weights twice.
    """
    return variable.value


def program(fn: Callable[..., Any], trace: Any, args: Sequence[Any]) -> Callable[[], Any]:
    """Return a function that calls the trace, which is much faster than the Python code."""
    flat = tf.nest.flatten(args)
    return lambda: trace(*flat)


def exact_products() -> AbstractContextManager[None]:
    """Do nothing. The setting of TensorFlow changes functions that run at the same time."""
    return nullcontext()


def refresh(variables: Sequence[Any]) -> None:
    """Do nothing. `stored` returned the live variables."""


def reader(variables: Sequence[Any], tables: Sequence[Any]) -> StateReader:
    """Return a reader of mutable tables and of `tf.Variable`s, including distributed ones."""
    return StateReader(variables, tables)


def traceable(fn: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """Return the function itself, because Keras computes with TensorFlow."""
    return fn


def synchronize(model: keras.Model) -> None:
    """Do nothing. TensorFlow variables always have their current values."""


def steps_taken(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> int:
    """Return the number of steps that the optimizer of a model has taken."""
    return int(optimizer.iterations.numpy())


def check_distribution(model: keras.Model) -> None:
    """Raise an error if no single process can read all variables of a model at one moment."""
    if isinstance(_strategy(model), tf.distribute.experimental.ParameterServerStrategy):
        raise ExportError(
            "The model is trained under a ParameterServerStrategy. Its workers change variables at "
            "any time, so the variables cannot be read at one moment. Export after training, from "
            "a copy of the model that you make outside the strategy."
        )


def is_publisher(model: keras.Model) -> bool:
    """Return whether this process trains alone, or is the chief of several processes."""
    return bool(_strategy(model).extended.should_checkpoint)


class StateReader:
    """Reads variables and mutable tables at one point in time.

    A traced call reads all variables much faster than one by one, but tracing takes longer
    than both. `read` therefore reads them one by one until `trace` was called.

    Args:
        variables: A sequence of `tf.Variable`s, including distributed ones.
        tables: A sequence of mutable lookup tables.
    """

    def __init__(self, variables: Sequence[Any], tables: Sequence[Any]) -> None:
        self._variables = variables
        self._tables = tables
        self._traced: list[_TracedRead] | None = None
        # This is computed once, because training waits for `read`.
        self._varying = [variable for variable in variables if not _is_of_fixed_size(variable)]
        varying = set(map(id, self._varying))
        self._fixed_size = sum(_size(item) for item in variables if id(item) not in varying)

    def read(self) -> Reading:
        """Read the values. This must be called on the training thread."""
        variables = self._read_variables()
        tables = [part for table in self._tables for part in table.export()]
        counted = [*_read(self._varying), *tables]
        return Reading(
            tensors=lambda: [*variables(), *tables],
            size=self._fixed_size + sum(map(_size, counted)),
        )

    def trace(self) -> None:
        """Make later reads faster, unless several machines share the variables.

        Tracing reads the variables once. Variables of several machines must be read by all
        of them at the same time, and this thread cannot do that alone.
        """
        if self._traced is None and not any(map(_is_on_several_machines, self._variables)):
            starts = range(0, len(self._variables), _AT_ONCE)
            self._traced = [
                _TracedRead(self._variables[start : start + _AT_ONCE]) for start in starts
            ]

    def _read_variables(self) -> Callable[[], list[tf.Tensor]]:
        if self._traced is None:
            values = _read(self._variables)
            return lambda: values
        parts = [read() for read in self._traced]
        return lambda: [value for part in parts for value in part()]


class _TracedRead:
    """Reads variables in one traced call.

    A third of the time of such a call goes into making a Python object for each
    tensor. The call therefore packs all tensors into one `Optional`, and another
    thread can unpack it. An `Optional` would move tensors from other devices to the
    host, so the call packs them only if all of them are on the host.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        on_host = ["CPU" in variable.device for variable in variables]
        self._packs = bool(on_host) and all(on_host)
        self._read = _traced(lambda: self._packed(_read(variables)))
        # The first call is slow, because it compiles. Training must not wait for it.
        values = self._read()
        if self._packs:
            self._unpack = _traced(
                lambda packed: packed.get_value(), tf.type_spec_from_value(values)
            )
            self._unpack(values)

    def __call__(self) -> Callable[[], list[tf.Tensor]]:
        values = self._read()
        return lambda: list(self._unpack(values)) if self._packs else values

    def _packed(self, values: list[tf.Tensor]) -> Any:
        return tf.experimental.Optional.from_value(tuple(values)) if self._packs else values


def _read(variables: Sequence[Any]) -> list[tf.Tensor]:
    return [variable.read_value() for variable in variables]


def _is_of_fixed_size(variable: Any) -> bool:
    return bool(variable.shape.is_fully_defined()) and variable.dtype != tf.string


def _size(value: Any) -> int:
    """Return the number of bytes of a tensor, or of a variable of fixed size."""
    count = int(value.shape.num_elements())
    if value.dtype != tf.string:
        return count * int(value.dtype.size)
    return count * _STRING_BYTES + int(tf.reduce_sum(tf.strings.length(value)))


def _is_on_several_machines(variable: Any) -> bool:
    strategy = getattr(variable, "distribute_strategy", None)
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _traced(function: Callable[..., Any], *specs: Any) -> Any:
    return tf.function(function, autograph=False).get_concrete_function(*specs)


def _strategy(model: keras.Model) -> Any:
    """Return the strategy that the model was made under, or TensorFlow's current strategy."""
    default = getattr(model, "distribute_strategy", tf.distribute.get_strategy())
    for variable in model.variables:
        return getattr(variable.value, "distribute_strategy", default)
    return default
