"""The operations that the engine needs from a backend of Keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import keras


@dataclass(frozen=True)
class Reading:
    """Values that were read at one point in time.

    Attributes:
        tensors: A function that returns the values: those of all variables, then the
            keys and values of each table.
        size: How much memory the values take at most, in bytes.
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

    @property
    def reads_live_values(self) -> bool:
        """Whether the functions that `traceable` returns read the live variables."""

    @property
    def reads_together(self) -> bool:
        """Whether all processes must take part in reading, if several train together."""

    @property
    def ignored_options(self) -> frozenset[str]:
        """The options of `add_endpoint` in Keras's archive that have no effect here."""

    def stored(self, variable: keras.Variable) -> Any:
        """Return the `tf.Variable` that represents a Keras variable in a SavedModel."""

    def traceable(self, fn: Callable[..., Any], signature: Any) -> Callable[..., Any]:
        """Return a TensorFlow function that computes the same as `fn`, for one signature."""

    def program(self, fn: Callable[..., Any], trace: Any, args: Sequence[Any]) -> Callable[[], Any]:
        """Return a function that computes ``fn(*args)`` with the live variables.

        It is much faster than `fn` when it is called again.

        Args:
            fn: The function.
            trace: A trace of the function by TensorFlow.
            args: The arguments of the function.
        """

    def exact_products(self) -> AbstractContextManager[None]:
        """Let products of float32 have the precision of float32.

        Accelerators may use fewer digits, and a server without one does not.
        """

    def refresh(self, variables: Sequence[Any]) -> None:
        """Copy the values of the live variables into the variables that `stored` returned."""

    def reader(self, variables: Sequence[Any], tables: Sequence[Any]) -> Reader:
        """Return a reader of mutable lookup tables and of variables that `stored` returned."""

    def synchronize(self, model: keras.Model) -> None:
        """Give the variables of a model their current values while `fit` runs."""

    def steps_taken(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> int:
        """Return the number of steps that the optimizer of a model has taken.

        Args:
            model: The model in training.
            optimizer: The optimizer that the model is compiled with, or another one that
                trains it.
        """

    def check_distribution(self, model: keras.Model) -> None:
        """Raise an error if no single process can read all variables of a model at one moment."""

    def is_publisher(self, model: keras.Model) -> bool:
        """Return whether this process publishes versions, if several processes train together."""
