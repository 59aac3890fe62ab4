"""Variables → one consistent set of tensors, in milliseconds and without a copy.

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

import tensorflow as tf


class StateReader:
    """Reads variables and mutable tables at one point in time.

    Args:
        variables: `tf.Variable`s, also distributed ones.
        tables: mutable lookup tables.

    Reading in one traced call takes a fraction of the time of reading one by
    one, but tracing it takes far longer than that. So `read` reads one by one
    until `trace` was called, which may happen on any thread.
    """

    def __init__(self, variables: Sequence[Any], tables: Sequence[Any]) -> None:
        self._variables = variables
        self._tables = tables
        self._traced: _TracedRead | None = None

    def read(self) -> Callable[[], list[tf.Tensor]]:
        """Read, and return what gives the values: of all variables, then keys and values of
        each table."""
        read = self._traced or self._read_one_by_one
        variables = read()
        tables = [part for table in self._tables for part in table.export()]
        return lambda: [*variables(), *tables]

    def trace(self) -> None:
        """Make the following reads fast, unless other machines have a share in them.

        What every worker has to read at once, this thread cannot read alone.
        """
        if self._traced is None and not any(map(_is_on_several_machines, self._variables)):
            self._traced = _TracedRead(self._variables)

    def _read_one_by_one(self) -> Callable[[], list[tf.Tensor]]:
        values = _read(self._variables)
        return lambda: values


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


def _is_on_several_machines(variable: Any) -> bool:
    strategy = getattr(variable, "distribute_strategy", None)
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _traced(function: Callable[..., Any], *specs: Any) -> Any:
    return tf.function(function, autograph=False).get_concrete_function(*specs)
