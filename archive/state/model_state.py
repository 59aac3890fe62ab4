"""Where the state of a model hangs that `model.variables` lacks.

States of recurrent layers, `tf.Variable`s and mutable tables in layers, and what
some optimizers keep to themselves: Keras lists none of them. Each is named by
its address, the way to it from the model, such as ``layers/2/states/0``. The
same code that builds the model again gives the same addresses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from .._tensorflow import AutoTrackable
from ..backends.backend import current_backend
from .models import has_declared_inputs
from .variable_index import VariableInfo

# What they hold is set by a method of theirs, see `layer_state`.
LOOKUPS = (
    keras.layers.StringLookup,
    keras.layers.IntegerLookup,
    keras.layers.TextVectorization,
)

_HOLDERS = (keras.Layer, keras.optimizers.Optimizer, AutoTrackable)
# Metrics start anew in every epoch.
_ENDS = (keras.metrics.Metric, *LOOKUPS)


@dataclass(frozen=True)
class ModelState:
    """What was found in a model, by address.

    Attributes:
        variables: every variable, those of `model.variables` too.
        tables: mutable lookup tables.
        layers: every layer.
    """

    variables: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, keras.Layer] = field(default_factory=dict)

    def addresses(self) -> dict[int, str]:
        """The address of each variable, by the identity of the `tf.Variable` in it."""
        return {id(raw_variable(item)): address for address, item in self.variables.items()}


def find_model_state(roots: Sequence[Any], with_optimizer: bool) -> ModelState:
    """Find what can be reached from `roots`, each by its shortest address.

    Args:
        roots: a model; or several objects, whose places then start the addresses.
        with_optimizer: look into optimizers too.
    """
    found = ModelState()
    seen: dict[int, Any] = {}
    pending = deque([("", roots[0])] if len(roots) == 1 else _items(roots))
    while pending:
        address, item = pending.popleft()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, keras.optimizers.Optimizer) and not with_optimizer:
            continue
        if isinstance(item, tf.Variable | keras.Variable):
            found.variables[address] = item
        elif is_mutable_table(item):
            found.tables[address] = item
        if isinstance(item, keras.Layer):
            found.layers[address] = item
        prefix = f"{address}/" if address else ""
        pending.extend((f"{prefix}{name}", child) for name, child in _children(item))
    return found


def is_mutable_table(resource: Any) -> bool:
    """Whether a lookup table's contents can change while the object stays."""
    return isinstance(
        resource, tf.lookup.experimental.MutableHashTable | tf.lookup.experimental.DenseHashTable
    )


def raw_variable(variable: Any) -> Any:
    """The `tf.Variable` that stands for a variable in a SavedModel."""
    return current_backend().stored(variable) if isinstance(variable, keras.Variable) else variable


def described(variable: Any, key: str = "") -> VariableInfo:
    """A Keras variable or `tf.Variable` as an index has it."""
    path = variable.path if isinstance(variable, keras.Variable) else variable.name
    shape = tf.TensorShape(variable.shape)
    sizes = () if shape.rank is None else tuple(shape.as_list())
    return VariableInfo(path, sizes, tf.dtypes.as_dtype(variable.dtype).name, key)


def apart_from(variables: Mapping[str, Any], listed: Iterable[Any]) -> dict[str, Any]:
    """Those of `variables` that are not in `listed`."""
    known = {id(raw_variable(variable)) for variable in listed}
    return {
        address: variable
        for address, variable in variables.items()
        if id(raw_variable(variable)) not in known
    }


def _children(item: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(item, Mapping):
        yield from ((str(key), child) for key, child in item.items())
    elif isinstance(item, list | tuple):
        yield from _items(item)
    elif isinstance(item, _HOLDERS) and not isinstance(item, _ENDS):
        layers = item.layers if isinstance(item, keras.Model) else []
        in_order = [(f"layers/{name}", layer) for name, layer in _items(layers)]
        # A subclassed model's layers go by its attributes: their order is nobody's concern.
        if has_declared_inputs(item):
            yield from in_order
        # Public names first: private ones lead to the same by ways that may change.
        for name in sorted(vars(item), key=lambda name: (name.startswith("_"), name)):
            if not name.startswith("_self_"):  # TensorFlow's own bookkeeping.
                yield name, vars(item)[name]
        yield from in_order


def _items(items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return ((str(place), item) for place, item in enumerate(items))
