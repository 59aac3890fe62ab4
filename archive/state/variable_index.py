"""Which variable lies under which key of a version's checkpoint.

A SavedModel names its variables by their place in the object graph. To put
them back into a model, one needs the model's own names, in order; they are kept
in ``assets.extra/variables.json``, where servers look for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import DamagedVersionError
from ..store.decoding import Int64, decode

INDEX = "assets.extra/variables.json"
LAYERS = "assets.extra/layers.json"

# The lists of every index; a collection cannot have a name like the last four.
VARIABLES = "variables"
OPTIMIZER_VARIABLES = "optimizer_variables"
# What else the model holds, by address (see `model_state`). Of a table there are
# two: its keys, and its values.
STATE = "_state"
TABLES = "_tables"
# The variables of the first list once more, in the same order, by address.
ADDRESSES = "_addresses"
# What only the endpoints hold, by name.
ELSEWHERE = "_elsewhere"


@dataclass(frozen=True)
class VariableInfo:
    """One variable of an export.

    Attributes:
        path: its name in the model, such as ``"dense/kernel"``.
        shape: the size of each axis.
        dtype: TensorFlow's name of the dtype.
        key: its key in the checkpoint ``variables/variables``.
    """

    path: str
    shape: tuple[Int64 | None, ...]
    dtype: str
    key: str


# The variables of each list and collection, in order, by its name.
VariableIndex: TypeAlias = Mapping[str, tuple[VariableInfo, ...]]

Scalar: TypeAlias = str | Int64 | float

# What a layer holds besides variables, by name, such as its ``"vocabulary"``.
LayerState: TypeAlias = Mapping[str, tuple[Scalar, ...]]

# That of each layer which holds some, by address.
LayerStates: TypeAlias = Mapping[str, LayerState]


def write_index(directory: Path, index: VariableIndex, layers: LayerStates) -> None:
    """Write the index, and the layers' other state, into a SavedModel's directory."""
    (directory / INDEX).parent.mkdir(exist_ok=True)
    content = {name: [asdict(info) for info in infos] for name, infos in index.items()}
    (directory / INDEX).write_text(json.dumps(content), encoding="utf-8")
    (directory / LAYERS).write_text(json.dumps(layers), encoding="utf-8")


def read_index(directory: Path) -> VariableIndex:
    """The index of the version in `directory`.

    Raises:
        DamagedVersionError: there is none, or it is not one.
    """
    path = directory / INDEX
    try:
        index: VariableIndex = _read(path, VariableIndex)
    except FileNotFoundError as error:
        raise _damaged(path, error) from error
    return index


def read_layers(directory: Path) -> LayerStates:
    """The other state of the layers in the version in `directory`; older ones have none.

    Raises:
        DamagedVersionError: it cannot be read.
    """
    try:
        layers: LayerStates = _read(directory / LAYERS, LayerStates)
    except FileNotFoundError:
        return {}
    return layers


def _read(path: Path, hint: Any) -> Any:
    try:
        return decode(path.read_bytes(), hint, "index")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DamagedVersionError:
    return DamagedVersionError(f"The variable index '{path}' cannot be used: {error}.")
