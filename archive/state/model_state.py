"""Finds the state of a model that `model.variables` does not list.

Keras leaves out the states of recurrent layers, `tf.Variable`s and mutable tables in
layers, and some variables of optimizers. Each of these is named by its address: the
way to it from the model, such as ``layers/2/states/0``. A model that the same code
builds again has the same addresses.
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

# The methods of these layers set their state, see `layer_state`.
LOOKUPS = (
    keras.layers.StringLookup,
    keras.layers.IntegerLookup,
    keras.layers.TextVectorization,
)

_HOLDERS = (keras.Layer, keras.optimizers.Optimizer, AutoTrackable)
# The attribute of a model, and the address, of the optimizer that it is compiled with.
_OPTIMIZER = "optimizer"
# The search stops at these. Metrics start anew in every epoch.
_ENDS = (keras.metrics.Metric, *LOOKUPS)


@dataclass(frozen=True)
class ModelState:
    """The state of a model, by address.

    Attributes:
        variables: All variables, including those of `model.variables`.
        tables: All mutable lookup tables.
        layers: All layers.
    """

    variables: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, keras.Layer] = field(default_factory=dict)

    def addresses(self) -> dict[int, str]:
        """Return the address of each variable, by the `id` of its `tf.Variable`."""
        return {id(raw_variable(item)): address for address, item in self.variables.items()}


def find_model_state(
    roots: Sequence[Any], with_optimizer: bool, optimizer: Any = None
) -> ModelState:
    """Find the variables, tables and layers in `roots`, each by its shortest address.

    Args:
        roots: One model, or several objects. The addresses of several objects start
            with their index in `roots`.
        with_optimizer: Whether to search optimizers too.
        optimizer: The optimizer to search in the place of the one that a model in `roots` is
            compiled with. With None, the compiled one is searched.
    """
    found = ModelState()
    seen: dict[int, Any] = {}
    pending = deque([("", roots[0])] if len(roots) == 1 else _items(roots))
    if optimizer is not None:
        pending.appendleft((_OPTIMIZER, optimizer))
        unused = {id(getattr(root, _OPTIMIZER, None)): root for root in roots}
        seen |= {at: item for at, item in unused.items() if at != id(optimizer)}
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
    """Return whether `resource` is a lookup table whose contents can change."""
    return isinstance(
        resource, tf.lookup.experimental.MutableHashTable | tf.lookup.experimental.DenseHashTable
    )


def raw_variable(variable: Any) -> Any:
    """Return the `tf.Variable` that represents a variable in a SavedModel."""
    return current_backend().stored(variable) if isinstance(variable, keras.Variable) else variable


def described(variable: Any, key: str = "") -> VariableInfo:
    """Return the description of a Keras variable or `tf.Variable` for an index."""
    path = variable.path if isinstance(variable, keras.Variable) else variable.name
    shape = tf.TensorShape(variable.shape)
    sizes = () if shape.rank is None else tuple(shape.as_list())
    return VariableInfo(path, sizes, tf.dtypes.as_dtype(variable.dtype).name, key)


def apart_from(variables: Mapping[str, Any], listed: Iterable[Any]) -> dict[str, Any]:
    """Return the items of `variables` whose variable is not in `listed`."""
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
        # In a subclassed model, attributes name the layers, because their order may change.
        if has_declared_inputs(item):
            yield from in_order
        # Public names come first. Private names lead to the same objects, but they may change.
        for name in sorted(vars(item), key=lambda name: (name.startswith("_"), name)):
            if not name.startswith("_self_"):  # TensorFlow keeps its own data there.
                yield name, vars(item)[name]
        yield from in_order


def _items(items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return ((str(place), item) for place, item in enumerate(items))
