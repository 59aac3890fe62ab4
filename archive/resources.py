"""What layers and functions hold besides variables: lookup tables, vocabularies.

A SavedModel can only use a table that is tracked, and an export must show a
layer's state as it is now. Both need the objects found, wherever they hang.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from ._tensorflow import Trackable


@dataclass(frozen=True)
class HostState:
    """The state around some objects that is not in variables.

    Attributes:
        layers: every layer, each once.
        resources: lookup tables and assets, each once.
    """

    layers: list[keras.Layer]
    resources: list[Any]

    def adapted(self) -> list[Any]:
        """What layers with an `adapt` method hold; they rebind it when adapted again."""
        return [value for layer in self.layers if hasattr(layer, "adapt") for value in _held(layer)]


def find_host_state(roots: Iterable[Any]) -> HostState:
    """Find layers, tables and assets reachable from `roots`.

    Args:
        roots: layers, trackable objects, or functions, which are searched
            through what they are bound to and what they close over.
    """
    resources: list[Any] = []
    layers: list[keras.Layer] = []
    seen: dict[int, Any] = {}
    stack = list(roots)[::-1]
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, _RESOURCES):
            resources.append(item)
        elif isinstance(item, keras.Layer):
            layers.append(item)
        stack.extend(reversed(_held(item)))
    return HostState(layers, resources)


def is_mutable_table(resource: Any) -> bool:
    """Whether a lookup table's contents can change while the object stays."""
    return isinstance(
        resource, tf.lookup.experimental.MutableHashTable | tf.lookup.experimental.DenseHashTable
    )


_RESOURCES = (tf.saved_model.experimental.TrackableResource, tf.saved_model.Asset)
_LEAVES = (str, bytes, int, float, type(None), tf.Tensor, tf.Variable, keras.Variable)


def _held(item: Any) -> list[Any]:
    """What `item` holds and may lead to a resource."""
    if isinstance(item, _LEAVES) or inspect.isclass(item) or inspect.ismodule(item):
        return []
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    if inspect.ismethod(item):
        return [item.__self__, item.__func__]
    if inspect.isfunction(item):
        cells = [cell.cell_contents for cell in item.__closure__ or () if _is_filled(cell)]
        names = [name for name in item.__code__.co_names if name in item.__globals__]
        return [*cells, *(item.__globals__[name] for name in names)]
    if isinstance(item, tf.types.experimental.PolymorphicFunction):
        return [item.python_function]
    if isinstance(item, keras.Layer | Trackable):
        return list(vars(item).values())
    return []


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # Assigned only later.
        return False
