"""`ExportRecord` and its file, the manifest ``assets.extra/export.json``.

The manifest is strict JSON (RFC 8259: no NaN, no infinities) with `schema`
first. It comes from a directory that others can write to, so reading one
checks every field and trusts none. One of a higher schema comes from a later
version of this library: of it, everything counts that can still be read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import operator
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

import msgspec

from ..errors import DamagedVersionError, StorageError
from .decoding import UNDECODED, Int64, Seconds, Size, fit, hints_of, parse_json
from .files import FileInfo
from .objective import Mode, Objective
from .remote import VersionPath
from .store import Files
from .versions import MANIFEST as MANIFEST
from .versions import parse

Weights: TypeAlias = Literal["current", "validated"]
Scalar: TypeAlias = str | Int64 | float | bool | None

SCHEMA = 1

# The manifest tells the digest of every file but its own; that is in this one,
# in the format of `sha256sum`, which can also check it.
MANIFEST_DIGEST = "assets.extra/export.json.sha256"

# What TensorFlow Serving sends itself when it loads a version.
WARMUP = "assets.extra/tf_serving_warmup_requests"

# Keys that a manifest has only if there is something to say.
_OPTIONAL = ("parity", "trial", "execution", "attempt", "hyperparameters", "project")

# Far above any real manifest; keeps a hostile one from filling the memory.
_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of an endpoint.

    Attributes:
        shape: the size of each axis, None where it is free; None if the rank is.
        dtype: TensorFlow's name of the dtype, such as ``"float32"``.
    """

    shape: tuple[Int64 | None, ...] | None
    dtype: str


@dataclass(frozen=True)
class EndpointInfo:
    """The signature of an endpoint: its inputs and outputs by name."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class ParityInfo:
    """How the artifact was compared with the model before it was published.

    Attributes:
        live_seconds: how long training waited for the model's outputs.
        check_seconds: how long it took to load and run the artifact.
        differences: the largest absolute difference by ``signature/output``; of
            integers, bools and strings the share of values that differ.
        allowed: what rounding may account for there.
        skipped: why other signatures were not compared, by name.
    """

    live_seconds: float
    check_seconds: float
    differences: Mapping[str, float]
    allowed: Mapping[str, float] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialInfo:
    """Which part of a tuner's search a version belongs to.

    Attributes:
        trial: the trial's id.
        execution: which execution of it, from 0.
        attempt: how often the trial had been tried before.
        hyperparameters: the values of the trial.
        project: the directory in which the tuner keeps the search, and the score
            of each trial.
    """

    trial: str
    execution: Int64
    attempt: Int64
    hyperparameters: Mapping[str, Scalar]
    project: str


@dataclass(frozen=True)
class ExportRecord:
    """What was published: one version, why, and at what cost.

    Attributes:
        path: the version's directory; a `Path` but in object stores.
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
        weights: ``"validated"`` if they are those that the epoch's validation ran
            on, which a callback such as `SwapEMAWeights` may have put in for it;
            ``"current"`` if they are those at the moment of the export.
        parity: how it was compared with the model, with `sample_inputs`.
        trial: the tuner's trial id, under a tuner.
        execution: the execution of that trial, from 0, under a tuner.
        attempt: how often that trial had been tried before, under a tuner.
        hyperparameters: the trial's hyperparameters, under a tuner.
        project: the directory of the search, where its score is, under a tuner.
        schema: the schema of the manifest; a higher one than this library writes
            means that a later version of it wrote this.
        unread: the keys of such a manifest that could not be read; their
            attributes are empty.
    """

    path: VersionPath
    version: Int64
    created: str
    epoch: Int64 | None
    step: Int64 | None
    reason: str
    monitor: str | None
    mode: Mode | None
    value: float | None
    metrics: Mapping[str, float]
    endpoints: Mapping[str, EndpointInfo]
    collections: Mapping[str, Int64]
    bytes: Size
    graph_reused: bool
    stall_seconds: Seconds
    write_seconds: Seconds
    libraries: Mapping[str, str]
    files: Mapping[str, FileInfo]
    weights: Weights = "current"
    parity: ParityInfo | None = None
    trial: str | None = None
    execution: Int64 | None = None
    attempt: Int64 | None = None
    hyperparameters: Mapping[str, Scalar] | None = None
    project: str | None = None
    schema: Int64 = SCHEMA
    unread: tuple[str, ...] = field(default=(), compare=False)

    @property
    def is_newer(self) -> bool:
        """Whether a later version of this library wrote it, which knows more of it than this."""
        return self.schema > SCHEMA

    def measured(self, monitor: str) -> float | None:
        """The value of a metric at the export, or None if it had no finite one."""
        value = self.value if monitor == self.monitor else None
        value = self.metrics.get(monitor) if value is None else value
        return value if value is not None and math.isfinite(value) else None

    @property
    def objective(self) -> Objective | None:
        """The metric and direction this version was exported for, if any."""
        return Objective(self.monitor, self.mode) if self.monitor and self.mode else None

    def to_json(self) -> str:
        """The manifest's text.

        Raises:
            ValueError: a number is not finite.
            TypeError: something has no place in JSON.
        """
        content = {"schema": self.schema} | asdict(self)
        del content["path"], content["unread"]
        for name in _OPTIONAL:
            if content[name] is None:
                del content[name]
        # `default` takes the integers of NumPy, which a step or epoch may be.
        return json.dumps(content, indent=1, allow_nan=False, default=operator.index) + "\n"


def manifest_digest(content: bytes) -> bytes:
    """The contents of the file with the digest of a manifest with `content`."""
    return f"{hashlib.sha256(content).hexdigest()}  {Path(MANIFEST).name}\n".encode()


def read_record(version: Files) -> ExportRecord:
    """The record of a version.

    Raises:
        FileNotFoundError: it has no manifest; another program wrote it.
        DamagedVersionError: it has one that is not ours or not whole.
    """
    path = version.root / MANIFEST
    try:
        status, content = version.read(MANIFEST, _MAX_BYTES + 1)
        # Neither a link out of the version, nor a pipe to wait on for ever.
        if status.size is None:
            raise DamagedVersionError(f"The manifest '{path}' is not a regular file.")
    except (FileNotFoundError, StorageError):
        raise  # There is none, or the whole store cannot be read.
    except OSError as error:
        raise DamagedVersionError(f"The manifest '{path}' cannot be read: {error}.") from error
    return parse_record(content, version.root)


def parse_record(content: bytes, version_dir: VersionPath) -> ExportRecord:
    """The record in the `content` of the manifest of `version_dir`.

    Raises:
        DamagedVersionError: it is not one that `ExportRecord.to_json` writes.
    """
    try:
        if len(content) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        record = _decoded(content.decode("utf-8"), version_dir)
        # A copy may be called anything but another version.
        if record.version != (parse(version_dir.name) or record.version):
            raise ValueError(
                f"it says version {record.version}, its directory {version_dir.name!r}"
            )
    except (ValueError, RecursionError) as error:
        raise DamagedVersionError(
            f"The manifest '{version_dir / MANIFEST}' cannot be used: {error}."
        ) from error
    return record


def _decoded(text: str, version_dir: VersionPath) -> ExportRecord:
    try:
        values = msgspec.structs.astuple(_decoder().decode(text))
    except UNDECODED:
        return _fitted(parse_json(text), version_dir)
    record = ExportRecord(version_dir, *values)
    return record if record.schema == SCHEMA else _fitted(parse_json(text), version_dir)


@dataclass(frozen=True)
class _Key:
    """A key of a manifest: the name and the type of an attribute of a record."""

    name: str
    hint: Any
    default: Any

    @property
    def is_required(self) -> bool:
        return self.default is msgspec.NODEFAULT


@functools.cache
def _keys() -> list[_Key]:
    """The attributes of a record but the first and the last, in their order."""
    hints = hints_of(ExportRecord)
    defaults = {
        each.name: msgspec.NODEFAULT if each.default is MISSING else each.default
        for each in fields(ExportRecord)
    } | {"schema": msgspec.NODEFAULT}
    return [_Key(name, hints[name], defaults[name]) for name in [*defaults][1:-1]]


@functools.cache
def _decoder() -> msgspec.json.Decoder[msgspec.Struct]:
    keys = [(key.name, key.hint, key.default) for key in _keys()]
    return msgspec.json.Decoder(msgspec.defstruct("Manifest", keys, kw_only=True))


def _fitted(content: Any, version_dir: VersionPath) -> ExportRecord:
    """The record in a manifest of a later version, or in one that msgspec does not take.

    Of a higher schema everything counts that can be read; else the error names the place.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {type(content).__name__}")
    schema = _value(content, "schema", Int64)
    if schema < SCHEMA:
        raise ValueError(f"expected schema {SCHEMA}, found {schema}")
    _value(content, "version", Int64)  # Without it there is no manifest, whatever its schema.
    values: dict[str, Any] = {}
    unread = []
    for key in _keys():
        if not key.is_required and key.name not in content:
            continue
        try:
            values[key.name] = _value(content, key.name, key.hint)
        except ValueError:
            if schema == SCHEMA:
                raise
            unread.append(key.name)
            if key.is_required:
                values[key.name] = _nothing(key.hint)
    if "metrics" in unread:
        values["metrics"] = _numbers(content.get("metrics"))
    return ExportRecord(version_dir, **values, unread=tuple(unread))


def _value(content: Mapping[str, Any], name: str, hint: Any) -> Any:
    if name not in content:
        raise ValueError(f"'{name}' is missing")
    return fit(content[name], hint, name)


def _nothing(hint: Any) -> Any:
    """The value of an attribute that could not be read."""
    if get_origin(hint) is Annotated:
        return _nothing(hint.__origin__)
    if type(None) in get_args(hint):
        return None
    return {} if get_origin(hint) else hint()


def _numbers(metrics: Any) -> dict[str, float]:
    """Those of the metrics that can be read, where later ones may be of other kinds."""
    numbers = {}
    for name, value in metrics.items() if isinstance(metrics, dict) else ():
        with suppress(ValueError):
            numbers[name] = fit(value, float, name)
    return numbers
