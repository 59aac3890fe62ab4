"""Finds the variables that an `endpoints` function could register, to see if they change.

`optimizer.variables` is a new list each time, so a list that was registered does not
show variables that the optimizer makes later. Calling the user's function again
would show them, but it may load tables or count its calls. This module therefore
looks for all variables that the function can reach, which takes a fraction of a
millisecond. The function is called again only if these have changed.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Iterable
from enum import Enum, auto
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import keras
import tensorflow as tf

from .identities import Identities

# Objects and functions of these modules do not lead to the user's variables.
_FOREIGN = {
    *sys.stdlib_module_names - {"argparse", "types"},  # Their namespaces do.
    *("jax", "keras", "keras_export_callbacks", "numpy", "pandas", "tensorflow", "torch"),
}

# A longer list counts as data, unless it begins with a variable.
_MAX_ITEMS = 1000

# The search stops after this many objects, because training waits for it. Near objects come first.
_MAX_VISITS = 20_000


class _Kind(Enum):
    """A way in which the search treats the objects of a type."""

    VARIABLE = auto()
    OWNER = auto()
    MODEL = auto()
    LAYER = auto()
    CONTAINER = auto()
    HOLDER = auto()
    NOTHING = auto()


def owned_variables(roots: Iterable[Any]) -> Identities:
    """Return the variables of all optimizers, layers, metrics and lists that `roots` can reach.

    Args:
        roots: Models and functions. From a function, the search goes on to the object that
            it is bound to, its closure, and the globals that it uses.
    """
    found: list[Any] = []
    kinds: dict[type, _Kind] = {}
    seen: dict[int, Any] = {}
    queue: deque[tuple[Iterable[Any], bool]] = deque([(roots, False)])
    while queue and len(seen) < _MAX_VISITS:
        items, are_parts = queue.popleft()
        for item in items:
            kind = kinds.get(type(item))
            if kind is None:
                kind = kinds[type(item)] = _kind_of(item)
            # The variables of a model's layers are among those of the model.
            if kind is _Kind.NOTHING or (are_parts and kind is _Kind.LAYER) or id(item) in seen:
                continue
            seen[id(item)] = item
            if kind is _Kind.VARIABLE:
                found.append(item)
            elif kind is _Kind.OWNER:
                found += [item, *item.variables]
            elif kind in (_Kind.LAYER, _Kind.MODEL) and not are_parts:
                variables = item.variables
                found += [item, *variables, *(variable.trainable for variable in variables)]
            queue.append((_parts(item, kind), are_parts or kind is _Kind.MODEL))
    return Identities(found)


def _kind_of(item: Any) -> _Kind:
    """Return how the search treats `item` and all other objects of its type."""
    if isinstance(item, keras.Variable | tf.Variable):
        return _Kind.VARIABLE
    if isinstance(item, keras.optimizers.Optimizer | keras.Metric):
        return _Kind.OWNER
    if isinstance(item, keras.Layer):
        return _Kind.MODEL if isinstance(item, keras.Model) else _Kind.LAYER
    # Other mappings may be files or databases.
    if isinstance(item, list | tuple | set | frozenset | dict):
        return _Kind.CONTAINER
    if isinstance(item, FunctionType | MethodType | functools.partial):
        return _Kind.HOLDER
    is_foreign = isinstance(item, type | ModuleType) or _is_foreign(type(item).__module__)
    return _Kind.NOTHING if is_foreign else _Kind.HOLDER


def _parts(item: Any, kind: _Kind) -> Iterable[Any]:
    """Return the objects that `item` holds, as far as the search goes on to them."""
    if kind is _Kind.CONTAINER:
        items = item.values() if isinstance(item, dict) else item
        is_data = len(items) > _MAX_ITEMS and _kind_of(next(iter(items))) is not _Kind.VARIABLE
        return () if is_data else tuple(items)
    if kind is _Kind.MODEL:
        known = _bookkeeping()
        return [value for name, value in vars(item).items() if name not in known]
    if kind is not _Kind.HOLDER:
        return ()
    if isinstance(item, FunctionType):
        return () if _is_foreign(item.__module__) else _held_by(item)
    if isinstance(item, MethodType):
        return item.__func__, item.__self__
    if isinstance(item, functools.partial):
        return item.func, *item.args, *item.keywords.values()
    call = [type(item).__call__] if callable(item) else []
    return [*getattr(item, "__dict__", {}).values(), *call]


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """Return the attributes that Keras gives every model, except the one with the model's layers.

    They hold each layer, and each call of a layer, many times. They hold no optimizer.
    """
    tensor = keras.Input((1,), name="x")  # Explicit names leave Keras's counters alone.
    models = keras.Model(tensor, tensor, name="functional"), keras.Sequential(name="sequential")
    return frozenset(name for model in models for name in vars(model)) - {"_layers"}


def _held_by(function: FunctionType) -> Iterable[Any]:
    names = sorted(set(_names(function.__code__)))
    named = [function.__globals__[name] for name in names if name in function.__globals__]
    for cell in function.__closure__ or ():
        try:
            named.append(cell.cell_contents)
        except ValueError:  # The variable has no value yet.
            continue
    modules = [item for item in named if isinstance(item, ModuleType)]
    in_modules = [
        vars(module)[name]
        for module in modules
        if not _is_foreign(module.__name__)
        for name in names
        if name in vars(module)
    ]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*named, *defaults, *in_modules]


def _names(code: CodeType) -> Iterable[str]:
    """Yield the names of globals and attributes in a function's code, and in its functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_foreign(module: str | None) -> bool:
    return module is None or module.partition(".")[0] in _FOREIGN
