"""Finds the state of layers and functions that is not in variables, such as lookup tables.

A SavedModel can use a table only if the table is tracked, and an export must
hold the current state of each layer. The engine therefore searches everything that
layers and functions refer to.
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
    """The result of a search.

    Attributes:
        layers: All layers, each once.
        resources: All lookup tables and assets, each once.
        seeds: The variables in which random layers count their draws.
        is_of_keras: Whether all code that was found belongs to Keras. Such code depends
            only on what was found.
    """

    layers: list[keras.Layer]
    resources: list[Any]
    seeds: list[Any]
    is_of_keras: bool

    def dependencies(self) -> list[Any]:
        """Return the objects that a trace depends on.

        If one of them is replaced, the trace is stale.
        """
        return [*self.resources, *(item for layer in self.layers for item in _identity(layer))]


def find_host_state(roots: Iterable[Any]) -> HostState:
    """Find the layers, tables, assets and seeds that can be reached from `roots`.

    Args:
        roots: Layers, trackable objects or functions. From a function, the search goes on
            to the object that it is bound to, its closure, and the globals that it uses.
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
    """Return whether `item` is code of Keras, or not code at all."""
    if isinstance(item, keras.layers.Lambda):
        return False
    code = type(item) if isinstance(item, keras.Layer) else item
    if inspect.isfunction(item) or isinstance(item, keras.Layer):
        return code.__module__.partition(".")[0] == "keras"
    return True


_RESOURCES = (tf.saved_model.experimental.TrackableResource, tf.saved_model.Asset)
_LEAVES = (str, bytes, int, float, type(None), tf.Tensor, tf.Variable, keras.Variable)


def _identity(layer: keras.Layer) -> Iterator[Any]:
    """Yield the objects that determine what a layer computes."""
    yield from layer.variables
    yield bool(layer.trainable)
    yield renewal(layer)
    if isinstance(layer, keras.Model):
        yield from layer.layers
    if hasattr(layer, "adapt"):  # `adapt` replaces what the layer holds.
        yield from _held(layer)


def _held(item: Any) -> list[Any]:
    """Return the objects that `item` holds and that may lead to a resource."""
    if isinstance(item, _LEAVES) or inspect.isclass(item) or inspect.ismodule(item):
        return []
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    if inspect.ismethod(item):
        # The object may be of any class, so its attributes are added here.
        return [item.__func__, item.__self__, *getattr(item.__self__, "__dict__", {}).values()]
    if inspect.isfunction(item):
        return _held_by_function(item)
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, weakref.ref):  # A `tf.function` of a method holds its object like this.
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
    """Yield the names of globals and attributes in a function's code, and in its functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # The variable has no value yet.
        return False
