"""What layers and functions hold besides variables: lookup tables, vocabularies.

A SavedModel can only use a table that is tracked, and an export must show a
layer's state as it is now. Both need the objects found, wherever they hang.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import keras
import tensorflow as tf

from .._tensorflow import Trackable
from ..state.identities import renewal
from .model_call import ModelCall


@dataclass(frozen=True)
class HostState:
    """The state around some objects that is not in variables.

    Attributes:
        layers: every layer, each once.
        resources: lookup tables and assets, each once.
        seeds: the variables that random layers count their draws in.
        is_of_keras: whether all code in it is Keras's own, which depends on nothing
            but what is found here.
    """

    layers: list[keras.Layer]
    resources: list[Any]
    seeds: list[Any]
    is_of_keras: bool

    def dependencies(self) -> list[Any]:
        """What the trace of a function depends on: if one is another, it is stale."""
        return [*self.resources, *(item for layer in self.layers for item in _identity(layer))]


def find_host_state(roots: Iterable[Any]) -> HostState:
    """Find layers, tables and assets reachable from `roots`.

    Args:
        roots: layers, trackable objects, or functions, which are searched
            through what they are bound to and what they close over.
    """
    resources: list[Any] = []
    layers: list[keras.Layer] = []
    seeds: list[Any] = []
    is_of_keras = True
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
        elif isinstance(item, keras.random.SeedGenerator | tf.random.Generator):
            seeds.append(item.state)
        is_of_keras = is_of_keras and _is_of_keras(item)
        stack.extend(reversed(_held(item)))
    return HostState(layers, resources, seeds, is_of_keras)


def _is_of_keras(item: Any) -> bool:
    """Whether `item` is no code, or code of Keras."""
    if isinstance(item, keras.layers.Lambda):
        return False
    code = type(item) if isinstance(item, keras.Layer) else item
    if inspect.isfunction(item) or isinstance(item, keras.Layer):
        return code.__module__.partition(".")[0] == "keras"
    return True


_RESOURCES = (tf.saved_model.experimental.TrackableResource, tf.saved_model.Asset)
_LEAVES = (str, bytes, int, float, type(None), tf.Tensor, tf.Variable, keras.Variable)


def _identity(layer: keras.Layer) -> Iterator[Any]:
    """What makes a layer compute as it does."""
    yield from layer.variables
    yield bool(layer.trainable)
    yield renewal(layer)
    if isinstance(layer, keras.Model):
        yield from layer.layers
    if hasattr(layer, "adapt"):  # Adapting it again rebinds what it holds.
        yield from _held(layer)


def _held(item: Any) -> list[Any]:
    """What `item` holds and may lead to a resource."""
    if isinstance(item, _LEAVES) or inspect.isclass(item) or inspect.ismodule(item):
        return []
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    if inspect.ismethod(item):
        # The object itself may be of any class; what it holds directly is searched too.
        return [item.__func__, item.__self__, *getattr(item.__self__, "__dict__", {}).values()]
    if inspect.isfunction(item):
        return _held_by_function(item)
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, weakref.ref):  # As a method that is a `tf.function` has its object.
        return [item()]
    if isinstance(item, tf.types.experimental.PolymorphicFunction):
        return [item.python_function]
    if isinstance(item, ModelCall):
        return [item.model]
    if isinstance(item, keras.Layer | Trackable):
        return list(vars(item).values())
    return []


def _held_by_function(function: Any) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    names = [name for name in _names(function.__code__) if name in function.__globals__]
    return [*cells, *defaults, *(function.__globals__[name] for name in names)]


def _names(code: CodeType) -> Iterator[str]:
    """The global names in a function's code, and in that of functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # Assigned only later.
        return False
