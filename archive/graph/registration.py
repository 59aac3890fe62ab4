"""The registration of what to export: endpoints, collections of variables, tracked objects."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import keras
import tensorflow as tf

from ..errors import ExportValueError
from ..state.identities import Identities
from ..state.models import has_declared_inputs
from .endpoint import Endpoint
from .model_call import ModelCall
from .signatures import guesses_dtypes, model_signature

# The attributes of a loaded artifact that hold the variables of the tracked objects.
VARIABLE_LISTS = ("variables", "trainable_variables", "non_trainable_variables")


class Registration:
    """The endpoints, variables and objects that an `ExportArchive` exports.

    Attributes:
        endpoints: The endpoints by name, in the order of registration.
        collections: Collections of variables by name. A list is not copied, so
            variables that its owner appends later are exported too.
        tracked: Layers and other trackable objects.
        optimizer: The optimizer that trains the tracked model, or None if it is the one that
            the model is compiled with.
    """

    def __init__(self) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.collections: dict[str, Collection[Any]] = {}
        self.tracked: list[Any] = []
        self.optimizer: Any = None

    def variables(self, attribute: str) -> list[Any]:
        """Return the current variables of all tracked layers, each once.

        Args:
            attribute: One of `VARIABLE_LISTS`.
        """
        found = [variable for layer in self._layers() for variable in getattr(layer, attribute)]
        return list({id(variable): variable for variable in found}.values())

    def lists(self) -> dict[str, list[Any]]:
        """Return the current variables of every list and collection, by name.

        Raises:
            ExportValueError: If a collection holds something that is not a variable.
        """
        for name, variables in self.collections.items():
            check_variables(name, variables)  # Their owners may have changed them.
        lists = {name: self.variables(name) for name in VARIABLE_LISTS}
        return lists | {name: list(variables) for name, variables in self.collections.items()}

    def renew_endpoints(self) -> None:
        """Renew every endpoint, so that it is traced again."""
        self.endpoints = {name: item.renewed() for name, item in self.endpoints.items()}

    def take_collections(self, other: Registration) -> bool:
        """Take over the collections of `other`, if that needs no new traces.

        No new traces are needed if `other` is a later registration of the same endpoints
        and layers, and each collection only gained or only lost variables. Otherwise
        the endpoints of `other` may use other variables, and nothing is changed.

        Returns:
            Whether the collections were taken over.
        """
        is_same = (
            list(self.endpoints) == list(other.endpoints)
            and Identities(self._layers()) == Identities(other._layers())
            and all(
                _has_more_or_less(variables, other.collections.get(name, ()))
                for name, variables in self.collections.items()
            )
        )
        if is_same:
            self.collections = other.collections
        return is_same

    def guessed(self) -> list[keras.Model]:
        """Return the models whose input dtypes are a guess, because they are not known yet."""
        return [model for model, _ in self._undeclared() if guesses_dtypes(model)]

    def has_other_dtypes(self) -> bool:
        """Return whether a model was registered with other input dtypes than it has now."""
        return any(signature != model_signature(model) for model, signature in self._undeclared())

    def _undeclared(self) -> list[tuple[keras.Model, Any]]:
        """Return the models that do not record the dtypes of their inputs, and their signatures."""
        return [
            (endpoint.fn.model, endpoint.signature)
            for endpoint in self.endpoints.values()
            if isinstance(endpoint.fn, ModelCall) and not has_declared_inputs(endpoint.fn.model)
        ]

    def _layers(self) -> list[keras.Layer]:
        return [item for item in self.tracked if isinstance(item, keras.Layer)]


def check_variables(name: str, variables: Iterable[Any]) -> None:
    """Raise an error unless a collection holds variables only.

    Raises:
        ExportValueError: If an item is not a Keras or TensorFlow variable.
    """
    others = {
        type(item) for item in variables if not isinstance(item, keras.Variable | tf.Variable)
    }
    if others:
        raise ExportValueError(
            f"Received {sorted(map(str, others))} in collection '{name}'. Expected Keras or "
            "TensorFlow variables only."
        )


def _has_more_or_less(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Return whether one of two collections has all variables of the other."""
    ours, theirs = set(map(id, one)), set(map(id, other))
    return ours <= theirs or theirs <= ours
