"""`ExportRecord` and its file, the manifest ``assets.extra/export.json``.

The manifest is strict JSON (RFC 8259: no NaN, no infinities) with `schema`
first. It comes from a directory that others can write to, so reading one
checks every field and trusts none.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .errors import DamagedVersionError
from .objective import Objective

SCHEMA = 1
MANIFEST = "assets.extra/export.json"

# Far above any real manifest; keeps a hostile one from filling the memory.
_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of an endpoint.

    Attributes:
        shape: the size of each axis, None where it is free; None if the rank is.
        dtype: TensorFlow's name of the dtype, such as ``"float32"``.
    """

    shape: tuple[int | None, ...] | None
    dtype: str


@dataclass(frozen=True)
class EndpointInfo:
    """The signature of an endpoint: its inputs and outputs by name."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256 digest (hexadecimal) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class ExportRecord:
    """What was published: one version, why, and at what cost.

    Attributes:
        path: the version's directory.
        version: its number, the name of that directory.
        created: when it was published, UTC, ISO 8601.
        epoch: the epoch it was exported in, from 0 as in Keras's hooks; None
            outside epochs.
        step: optimizer steps taken, `optimizer.iterations`; None if unknown.
        reason: why, such as ``"improved"`` or ``"every 2 epochs"``.
        monitor: the metric that made it happen, if one did.
        mode: that metric's direction, ``"min"`` or ``"max"``.
        value: that metric's value.
        metrics: every finite scalar in the logs at that moment.
        endpoints: signatures by name.
        collections: number of variables in each collection, by name.
        bytes: size of all files in the version together.
        graph_reused: whether the traced graph of an earlier export was used.
        stall_seconds: how long training waited for this export.
        write_seconds: from the end of the snapshot to the publishing rename.
        libraries: the versions of the libraries that wrote it.
        files: size and digest of every file but the manifest, by relative path.
        trial: the tuner's trial id, under a tuner.
        execution: the execution of that trial, from 0, under a tuner.
        hyperparameters: the trial's hyperparameters, under a tuner.
    """

    path: Path
    version: int
    created: str
    epoch: int | None
    step: int | None
    reason: str
    monitor: str | None
    mode: str | None
    value: float | None
    metrics: Mapping[str, float]
    endpoints: Mapping[str, EndpointInfo]
    collections: Mapping[str, int]
    bytes: int
    graph_reused: bool
    stall_seconds: float
    write_seconds: float
    libraries: Mapping[str, str]
    files: Mapping[str, FileInfo]
    trial: str | None = None
    execution: int | None = None
    hyperparameters: Mapping[str, Any] | None = None

    def measured(self, monitor: str) -> float | None:
        """The value of a metric at the export, or None."""
        if monitor == self.monitor and self.value is not None:
            return self.value
        return self.metrics.get(monitor)

    @property
    def objective(self) -> Objective | None:
        """The metric and direction this version was exported for, if any."""
        if self.monitor is None or self.mode not in ("min", "max"):
            return None
        return Objective(self.monitor, "min" if self.mode == "min" else "max")

    def to_json(self) -> str:
        """The manifest's text."""
        content = {"schema": SCHEMA} | {
            field.name: _plain(getattr(self, field.name))
            for field in fields(self)
            if field.name != "path"
        }
        for name in ("trial", "execution", "hyperparameters"):
            if content[name] is None:
                del content[name]
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def read_record(version_dir: Path) -> ExportRecord:
    """The record of the version in `version_dir`.

    Raises:
        FileNotFoundError: it has no manifest; another program wrote it.
        DamagedVersionError: it has one that is not ours or not whole.
    """
    path = version_dir / MANIFEST
    try:
        if path.is_symlink() or path.parent.is_symlink():
            raise ValueError("it is reached through a symbolic link")
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        content = json.loads(
            path.read_bytes(), parse_constant=_no_constant, parse_float=_finite_float
        )
        return _from_content(content, version_dir)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise DamagedVersionError(f"The manifest '{path}' cannot be used: {error}.") from error


def _from_content(content: Any, version_dir: Path) -> ExportRecord:
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {type(content).__name__}")
    if content.get("schema") != SCHEMA:
        raise ValueError(f"expected schema {SCHEMA}, found {content.get('schema')!r}")
    hints = typing.get_type_hints(ExportRecord)
    values: dict[str, Any] = {"path": version_dir}
    for field in fields(ExportRecord):
        if field.name == "path":
            continue
        optional = type(None) in typing.get_args(hints[field.name])
        if field.name not in content and not optional:
            raise ValueError(f"'{field.name}' is missing")
        values[field.name] = _checked(content.get(field.name), hints[field.name], field.name)
    if str(values["version"]) != version_dir.name:
        raise ValueError(f"it says version {values['version']}, its directory {version_dir.name}")
    return ExportRecord(**values)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, or a ValueError naming the place."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = (arg for arg in args if arg is not type(None))
        return _checked(value, inner, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"'{where}' is not a list")
        return tuple(_checked(item, args[0], where) for item in value)
    if origin is not None:
        if not isinstance(value, dict):
            raise ValueError(f"'{where}' is not an object")
        return {key: _checked(item, args[1], f"{where}.{key}") for key, item in value.items()}
    if hasattr(hint, "__dataclass_fields__"):
        inner_hints = typing.get_type_hints(hint)
        if not isinstance(value, dict) or value.keys() != inner_hints.keys():
            raise ValueError(f"'{where}' does not have exactly {sorted(inner_hints)}")
        return hint(
            **{key: _checked(value[key], inner_hints[key], f"{where}.{key}") for key in inner_hints}
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"'{where}' is {value!r:.80}, expected {hint.__name__}")
    return value


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} does not fit a float")
    return value
