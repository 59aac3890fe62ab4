"""What the engine needs of what Keras runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras


@dataclass(frozen=True)
class Reading:
    """What was read at one point in time.

    Attributes:
        tensors: gives the values: of all variables, then the keys and values of each table.
        size: the memory that they take at most, in bytes.
    """

    tensors: Callable[[], list[Any]]
    size: int


class Reader(Protocol):
    """Reads variables and mutable tables at one point in time."""

    def read(self) -> Reading:
        """Read, on the thread that trains."""

    def trace(self) -> None:
        """Make the following reads fast; on any thread."""


class Backend(Protocol):
    """What the engine needs of a backend of Keras."""

    @property
    def reads_live_values(self) -> bool:
        """Whether what `traceable` gives computes with the live variables."""

    @property
    def reads_together(self) -> bool:
        """Whether every process has to take part in reading, where several train together."""

    def stored(self, variable: keras.Variable) -> Any:
        """The `tf.Variable` that stands for a Keras variable in a SavedModel."""

    def traceable(self, fn: Callable[..., Any], signature: Any) -> Callable[..., Any]:
        """A function of TensorFlow that computes what `fn` does for a signature."""

    def program(self, fn: Callable[..., Any], trace: Any, args: Sequence[Any]) -> Callable[[], Any]:
        """A fast way to compute ``fn(*args)`` again and again with the live variables."""

    def refresh(self, variables: Sequence[Any]) -> None:
        """Let what `stored` gave have the values of the live variables."""

    def reader(self, variables: Sequence[Any], tables: Sequence[Any]) -> Reader:
        """A reader of what `stored` gave, and of mutable lookup tables."""

    def synchronize(self, model: keras.Model) -> None:
        """Give the variables of a model in training their values of this moment."""

    def steps_taken(self, model: keras.Model) -> int:
        """How many steps a model's optimizer has taken."""

    def check_distribution(self, model: keras.Model) -> None:
        """Raise if no one process can read a model's variables at one moment."""

    def is_publisher(self, model: keras.Model) -> bool:
        """Whether this process is the one that publishes, where several train together."""
