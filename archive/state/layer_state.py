"""Reads and puts back the state of layers that is not in variables.

Such state is a vocabulary, bins, or the values that a layer derives from its variables
when it is adapted. A trace holds all this as constants. A layer must therefore be traced
again when its state was put back, and `identities.renew` marks such layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from .identities import renew
from .model_state import LOOKUPS
from .variable_index import LayerState, LayerStates, Scalar

# Layers that keep their state in an attribute, which is also an argument of their constructor.
# A `FeatureSpace` gives a `CategoryEncoding` the size of the vocabulary that it adapted to.
_ATTRIBUTES: dict[type, str] = {
    keras.layers.Discretization: "bin_boundaries",
    keras.layers.CategoryEncoding: "num_tokens",
}


# The name for state that a layer holds, but that cannot be read.
_UNKNOWN = "unknown"


def read_layer(layer: keras.Layer) -> LayerState | None:
    """Return the state of a layer besides variables, or None if this kind of layer has none."""
    if isinstance(layer, LOOKUPS):
        try:
            return _read_lookup(layer)
        except Exception:  # For example, its vocabulary is not text.
            return {_UNKNOWN: ()}
    for kind, name in _ATTRIBUTES.items():
        if isinstance(layer, kind):
            value = getattr(layer, name)
            return {} if value is None else {name: _scalars(np.ravel(value))}
    return None


def read_layers(layers: Mapping[str, keras.Layer]) -> LayerStates:
    """Return the state of the layers besides variables, by name, without those that have none."""
    states = {address: read_layer(layer) for address, layer in layers.items()}
    return {address: state for address, state in states.items() if state}


def put_back(layer: keras.Layer, state: LayerState) -> bool | None:
    """Give a layer the state that was read from another.

    Returns:
        True if the layer took the state, False if it could not, and None if it already
        had the state and stayed as it is.
    """
    before = read_layer(layer)
    if before == state:
        return None if _UNKNOWN not in state else False
    try:
        _put(layer, state)
    except Exception:
        # A lookup layer replaces its table before it checks that the size stays the same.
        if before:
            _put(layer, before)
        return False
    renew(layer)
    return read_layer(layer) == state


def saves_more(layer: keras.Layer) -> bool:
    """Return whether a layer's own methods save more than its variables.

    Keras's ``.keras`` files hold this, but a version does not.
    """
    if isinstance(layer, LOOKUPS):
        return False
    if not _is_of_keras(getattr(layer, "save_assets", keras.Layer.call)):
        return True
    if not _is_own(layer):
        return False
    held = [np.asarray(variable) for variable in layer.variables]
    try:
        saved = _saved(layer).values()
    except Exception:  # The method is the user's.
        return True
    return not all(any(np.array_equal(value, own) for own in held) for value in saved)


def derive(layer: keras.Layer) -> bool:
    """Let a layer compute again what it derives from its variables, as `load_weights` does.

    Returns:
        Whether the layer derives anything.
    """
    if not layer.variables or isinstance(layer, LOOKUPS):
        return False
    if _is_own(layer):
        layer.load_own_variables(_saved(layer))
    elif hasattr(layer, "finalize_state"):
        layer.finalize_state()
    else:
        return False
    renew(layer)
    return True


def _read_lookup(layer: Any) -> LayerState:
    if not layer.get_vocabulary(include_special_tokens=False):
        return {}
    state = {"vocabulary": _scalars(layer.get_vocabulary())}
    if (weights := _saved(layer).get("idf_weights")) is not None:
        # The weights are padded beyond the vocabulary.
        state["idf_weights"] = _scalars(weights[: len(state["vocabulary"])])
    return state


def _put(layer: Any, state: LayerState) -> None:
    if "vocabulary" in state:
        weights = state.get("idf_weights")
        given = None if weights is None else np.array([float(weight) for weight in weights])
        layer.set_vocabulary(list(state["vocabulary"]), given)
    elif "bin_boundaries" in state:
        layer.bin_boundaries = [float(boundary) for boundary in state["bin_boundaries"]]
    elif "num_tokens" in state:
        (layer.num_tokens,) = state["num_tokens"]


def _scalars(values: Any) -> tuple[Scalar, ...]:
    """Return values in a form that JSON can hold. Floats that are not finite become text."""
    items = [item.item() if isinstance(item, np.generic) else item for item in values]
    return tuple(
        str(item) if isinstance(item, float) and not math.isfinite(item) else item for item in items
    )


def _saved(layer: keras.Layer) -> dict[str, Any]:
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    return store


def _is_own(layer: keras.Layer) -> bool:
    """Return whether loading a layer's variables does more than assign them.

    Classes for which Keras itself overrides both loading and saving do not count. These
    methods handle quantized kernels. Loading what they saved would merge weights that
    are trained separately.
    """
    load, save, base = type(layer).load_own_variables, type(layer).save_own_variables, keras.Layer
    if load is base.load_own_variables:
        return False
    return save is base.save_own_variables or not (_is_of_keras(load) and _is_of_keras(save))


def _is_of_keras(method: Any) -> bool:
    return str(method.__module__).split(".")[0] == "keras"
