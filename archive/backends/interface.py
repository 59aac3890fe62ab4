"""The operations that the engine needs from a backend of Keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras


@dataclass(frozen=True)
class Reading:
    """Values that were read at one point in time.

    Attributes:
        tensors: A function that returns the values: those of all variables, then the
            keys and values of each table.
        size: The memory that the values take at most, in bytes.
    """

    tensors: Callable[[], list[Any]]
    size: int


class Reader(Protocol):
    """Reads variables and mutable tables at one point in time."""

    def read(self) -> Reading:
        """Read the values. This must be called on the training thread."""

    def trace(self) -> None:
        """Make later reads faster. This may be called on any thread."""


class Backend(Protocol):
    """The operations that the engine needs from a backend of Keras."""

    def stored(self, variable: keras.Variable) -> Any:
        """The `tf.Variable` that represents a Keras variable in a SavedModel."""

    def reader(self, variables: Sequence[Any], tables: Sequence[Any]) -> Reader:
        """A reader of mutable lookup tables, and of variables that `stored` returned."""

    def steps_taken(self, optimizer: keras.Optimizer) -> int:
        """The number of steps that an optimizer has taken."""

    def check_distribution(self, model: keras.Model) -> None:
        """Raise an error if no single process can read all variables of a model at one moment."""

    def is_publisher(self, model: keras.Model) -> bool:
        """Whether this process publishes the versions, if several processes train together."""
