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
from typing import TypeAlias

from .errors import DamagedVersionError
from .remote import VersionPath
from .strict_json import as_type, parse_json

INDEX = "assets.extra/variables.json"


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
    shape: tuple[int | None, ...]
    dtype: str
    key: str


# The variables of each list and collection, in order, by its name.
VariableIndex: TypeAlias = Mapping[str, tuple[VariableInfo, ...]]


def write_index(directory: Path, index: VariableIndex) -> None:
    """Write the index into a SavedModel's directory."""
    path = directory / INDEX
    path.parent.mkdir(exist_ok=True)
    content = {name: [asdict(info) for info in infos] for name, infos in index.items()}
    path.write_text(json.dumps(content), encoding="utf-8")


def read_index(directory: VersionPath) -> VariableIndex:
    """The index of the version in `directory`.

    Raises:
        DamagedVersionError: there is none, or it is not one.
    """
    path = directory / INDEX
    try:
        index: VariableIndex = as_type(parse_json(path.read_bytes()), VariableIndex, "index")
        return index
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedVersionError(
            f"The variable index '{path}' cannot be used: {error}."
        ) from error
