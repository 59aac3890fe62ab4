"""The index of a version, which tells the key of each variable in the checkpoint.

A SavedModel names its variables by their place in the object graph. Putting them back
into a model needs the model's own names, in order. The index keeps these in
``assets.extra/variables.json``, which model servers ignore.
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

# The names of the lists in every index. A collection cannot have the last four: they start with
# an underscore.
VARIABLES = "variables"
OPTIMIZER_VARIABLES = "optimizer_variables"
# The other state of the model, by address (see `model_state`). Each table has two entries: for
# its keys and for its values.
STATE = "_state"
TABLES = "_tables"
# The variables of `VARIABLES` again, in the same order, but by address.
ADDRESSES = "_addresses"
# The variables and tables that only the endpoints hold, by name.
ELSEWHERE = "_elsewhere"


@dataclass(frozen=True)
class VariableInfo:
    """The description of one variable of an export.

    Attributes:
        path: The name in the model, such as ``"dense/kernel"``.
        shape: The size of each axis. None stands for a free axis.
        dtype: TensorFlow's name of the dtype.
        key: The key in the checkpoint ``variables/variables``.
    """

    path: str
    shape: tuple[Int64 | None, ...]
    dtype: str
    key: str


# The variables of each list and collection, in order, by the name of the list.
VariableIndex: TypeAlias = Mapping[str, tuple[VariableInfo, ...]]

Scalar: TypeAlias = str | Int64 | float

# The state of a layer besides variables, by name, such as its ``"vocabulary"``.
LayerState: TypeAlias = Mapping[str, tuple[Scalar, ...]]

# The state of each layer that has any, by address.
LayerStates: TypeAlias = Mapping[str, LayerState]


def write_index(directory: Path, index: VariableIndex, layers: LayerStates) -> None:
    """Write the index, and the other state of the layers, into a SavedModel's directory."""
    (directory / INDEX).parent.mkdir(exist_ok=True)
    content = {name: [asdict(info) for info in infos] for name, infos in index.items()}
    (directory / INDEX).write_text(json.dumps(content), encoding="utf-8")
    (directory / LAYERS).write_text(json.dumps(layers), encoding="utf-8")


def read_index(directory: Path) -> VariableIndex:
    """Return the index of the version in `directory`.

    Raises:
        DamagedVersionError: If there is no index, or if it cannot be read.
    """
    path = directory / INDEX
    try:
        index: VariableIndex = _read(path, VariableIndex)
    except FileNotFoundError as error:
        raise _damaged(path, error) from error
    return index


def read_layers(directory: Path) -> LayerStates:
    """Return the other state of the layers of the version in `directory`.

    Old versions have none.

    Raises:
        DamagedVersionError: If the state cannot be read.
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
    return DamagedVersionError(f"The index file '{path}' cannot be used: {error}.")
