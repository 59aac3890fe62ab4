"""Keras on TensorFlow: variables are read in milliseconds and without a copy.

TensorFlow copies a variable's buffer when it is assigned while somebody else
still holds it. Reading is therefore free, and what was read stays as it was
however training goes on. A snapshot costs memory only for what training
changes while the snapshot is held. A variable that is updated in parts, such as
an embedding with sparse gradients, is the exception: TensorFlow copies it when
it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from ..errors import ExportError
from .interface import Reading

# How many variables one traced call reads. TensorFlow optimizes a function the first time that
# it runs, which takes a minute for 3,000 variables at once, and seconds in parts of this size.
_AT_ONCE = 500

# What TensorFlow takes for a string, beside its characters.
_STRING_BYTES = 24


# A trace reads the very variables that training changes.
reads_live_values = True

# A variable may be spread over workers, which then read it together.
reads_together = True


def stored(variable: keras.Variable) -> Any:
    """The `tf.Variable` inside a Keras variable.

    The two are two objects to TensorFlow, which would store the same weights twice.
    """
    return variable.value


def program(fn: Callable[..., Any], trace: Any, args: Sequence[Any]) -> Callable[[], Any]:
    """The trace of a function, which is much faster than the function's own code."""
    flat = tf.nest.flatten(args)
    return lambda: trace(*flat)


def refresh(variables: Sequence[Any]) -> None:
    """Do nothing: these are the live variables."""


def reader(variables: Sequence[Any], tables: Sequence[Any]) -> StateReader:
    """A reader of `tf.Variable`s, also distributed ones, and of mutable tables."""
    return StateReader(variables, tables)


def traceable(fn: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """The function itself: Keras computes with TensorFlow."""
    return fn


def synchronize(model: keras.Model) -> None:
    """Do nothing: variables always have their values."""


def steps_taken(model: keras.Model) -> int:
    """How many steps a model's optimizer has taken."""
    return int(model.optimizer.iterations.numpy())


def check_distribution(model: keras.Model) -> None:
    """Raise if a model's variables are where no one process can read them at one moment."""
    if isinstance(_strategy(model), tf.distribute.experimental.ParameterServerStrategy):
        raise ExportError(
            "The model is trained under a ParameterServerStrategy, where workers change variables "
            "at any time, so that there is no moment to export. Export at the end, from a copy of "
            "the model that is made outside the strategy."
        )


def is_publisher(model: keras.Model) -> bool:
    """Whether this process is the chief of those that train, or the only one."""
    return bool(_strategy(model).extended.should_checkpoint)


class StateReader:
    """Reads variables and mutable tables at one point in time.

    Args:
        variables: `tf.Variable`s, also distributed ones.
        tables: mutable lookup tables.

    Reading in traced calls takes a fraction of the time of reading one by one,
    but tracing them takes far longer than that. So `read` reads one by one
    until `trace` was called, which may happen on any thread.
    """

    def __init__(self, variables: Sequence[Any], tables: Sequence[Any]) -> None:
        self._variables = variables
        self._tables = tables
        self._traced: list[_TracedRead] | None = None
        # Counted once: there may be thousands, and training waits for `read`.
        self._varying = [variable for variable in variables if not _is_of_fixed_size(variable)]
        varying = set(map(id, self._varying))
        self._fixed_size = sum(_size(item) for item in variables if id(item) not in varying)

    def read(self) -> Reading:
        """Read, on the thread that trains."""
        variables = self._read_variables()
        tables = [part for table in self._tables for part in table.export()]
        counted = [*_read(self._varying), *tables]
        return Reading(
            tensors=lambda: [*variables(), *tables],
            size=self._fixed_size + sum(map(_size, counted)),
        )

    def trace(self) -> None:
        """Make the following reads fast, unless other machines have a share in them.

        What every worker has to read at once, this thread cannot read alone.
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
    """Reads variables in one call.

    A third of the time of such a call goes into making a Python object for each
    tensor. An optional holds them all in one, to be unpacked on another thread.
    It would move tensors to the host, though, so it is for those that are there.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        on_host = ["CPU" in variable.device for variable in variables]
        self._packs = bool(on_host) and all(on_host)
        self._read = _traced(lambda: self._packed(_read(variables)))
        # The first call compiles; it must not be one that training waits for.
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
    """The bytes of a tensor, or of a variable of fixed size."""
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
    """The strategy that the model was made under; TensorFlow's default one otherwise."""
    default = getattr(model, "distribute_strategy", tf.distribute.get_strategy())
    for variable in model.variables:
        return getattr(variable.value, "distribute_strategy", default)
    return default
