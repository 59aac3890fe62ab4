"""`ExportRecord` and its file, the manifest ``assets.extra/export.json``.

The manifest is strict JSON (RFC 8259, so without NaN and infinities). Its first key is
`schema`. Other programs may write to the directory of a manifest, so every field is
checked when it is read. A later version of this library may write a higher schema. Such a
manifest is read as far as possible.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
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

# The manifest has the digests of the other files. Its own digest is in this file, in the format of
# `sha256sum`, which can check it too.
MANIFEST_DIGEST = "assets.extra/export.json.sha256"

# The requests that TensorFlow Serving sends to itself when it loads a version.
WARMUP = "assets.extra/tf_serving_warmup_requests"

# The directory of this library's own files, and of the extra files of users.
EXTRA = "assets.extra"

# The names in that directory that this library uses. All others are extra files.
OWN_EXTRA = (
    "export.json",
    "export.json.sha256",
    "layers.json",
    "shards",
    "tf_serving_warmup_requests",
    "variables.json",
)

# A manifest leaves out these keys if their value is None, and others if they are empty.
_OPTIONAL = ("parity", "trial", "execution", "attempt", "hyperparameters", "project", "copied_from")
_OPTIONAL_IF_EMPTY = ("withdrawn", "metadata")

# This is far above the size of a real manifest. It keeps a hostile one from filling the memory.
_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class TensorInfo:
    """The description of one input or output of an endpoint.

    Attributes:
        shape: The size of each axis. None stands for a free axis, or, in place of the
            tuple, for an unknown rank.
        dtype: TensorFlow's name of the dtype, such as ``"float32"``.
    """

    shape: tuple[Int64 | None, ...] | None
    dtype: str


@dataclass(frozen=True)
class EndpointInfo:
    """The signature of an endpoint.

    Attributes:
        inputs: The inputs by name.
        outputs: The outputs by name.
    """

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class ParityInfo:
    """The comparison of an artifact with the model before it was published.

    Attributes:
        live_seconds: How long training waited for the model's outputs.
        check_seconds: How long it took to load and run the artifact in another process.
        differences: The largest absolute difference of each output, by
            ``signature/output``. For integers, bools and strings it is the share of values
            that differ. It may also be that share for floats that are all whole numbers.
        allowed: The difference that rounding explains for the value that differs most, or
            the share of values that may differ, by ``signature/output``.
        skipped: For each signature that was not compared, the reason.
        files: The largest absolute difference of each extra file that was compared with the
            model, by the name of the file.
    """

    live_seconds: float
    check_seconds: float
    differences: Mapping[str, float]
    allowed: Mapping[str, float] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialInfo:
    """The place of a version in a tuner's search.

    Attributes:
        trial: The id of the trial.
        execution: The number of the execution of the trial, from 0.
        attempt: How often the trial had been tried before.
        hyperparameters: The hyperparameters of the trial, by name.
        project: The directory in which the tuner keeps the search and the score of each
            trial.
    """

    trial: str
    execution: Int64
    attempt: Int64
    hyperparameters: Mapping[str, Scalar]
    project: str


@dataclass(frozen=True)
class ExportRecord:
    """The description of one published version.

    Attributes:
        path: The version's directory. It is a `Path`, except in object stores.
        version: The version's number, which is also the name of the directory.
        created: When the version was published, as an ISO 8601 time in UTC.
        epoch: The epoch of the export, from 0 as in Keras's callbacks. None outside of
            epochs.
        step: The number of optimizer steps (`optimizer.iterations`). None if unknown.
        reason: The reason for the export, such as ``"improved"`` or ``"every 2 epochs"``.
        monitor: The metric that caused the export. None if no metric did.
        mode: The direction of that metric, ``"min"`` or ``"max"``.
        value: The value of that metric.
        metrics: Every finite scalar in the logs at the export, by name.
        endpoints: The signatures by name.
        collections: The number of variables in each collection, by name.
        bytes: The total size of all files except the manifest and its digest, in bytes.
        graph_reused: Whether the export reused the traced graph of an earlier export.
        stall_seconds: How long training waited for the export.
        write_seconds: The time from the end of the snapshot until the manifest was
            written, just before the version appeared. It includes the wait for earlier
            exports. In a bucket, files are still copied after it.
        libraries: The versions of the libraries that wrote the version, by name.
        files: The size and the digest of every file except the manifest and its digest, by
            relative path.
        weights: ``"validated"`` if the version holds the weights that the epoch's
            validation used. A callback such as `SwapEMAWeights` may put these in for the
            validation. ``"current"`` if it holds the weights at the moment of the export.
        parity: The comparison with the model. None without `sample_inputs`.
        trial: The id of the tuner's trial. This and the next four are None without a tuner.
        execution: The number of the execution of the trial, from 0.
        attempt: How often the trial had been tried before.
        hyperparameters: The hyperparameters of the trial, by name.
        project: The directory of the search, which also has the score of the trial.
        copied_from: What the version is a copy of: the number of a version in the same
            base directory, or the path of a version elsewhere. None for an export.
        withdrawn: The versions that a rollback withdrew when it published this version.
            They do not count as the best any more.
        metadata: The `metadata` of the callback or `Exporter`, by name.
        schema: The schema of the manifest. If it is higher than the one this library
            writes, a later version of the library wrote the manifest.
        unread: The keys of a manifest with a higher schema that could not be read. Their
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
    copied_from: str | None = None
    withdrawn: tuple[Int64, ...] = ()
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    schema: Int64 = SCHEMA
    unread: tuple[str, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        known = {"epoch": self.epoch, "step": self.step}
        parts = [f"{name}={value}" for name, value in known.items() if value is not None]
        names = {name: name if name.isidentifier() else repr(name) for name in self.metrics}
        parts += [f"{names[name]}={value:.6g}" for name, value in self.metrics.items()]
        described = "".join(f", {part}" for part in parts)
        return f"ExportRecord({str(self.path)!r}, {self.reason!r}{described})"

    @property
    def extra_files(self) -> dict[str, FileInfo]:
        """The size and the digest of each extra file, by its name below ``assets.extra``."""
        names = {name.removeprefix(f"{EXTRA}/"): name for name in self.files}
        return {
            short: self.files[name]
            for short, name in names.items()
            if short != name and short.partition("/")[0] not in OWN_EXTRA
        }

    @property
    def is_newer(self) -> bool:
        """Whether a later version of this library wrote the manifest."""
        return self.schema > SCHEMA

    def measured(self, monitor: str) -> float | None:
        """Return the value of a metric at the export, or None if there is no finite value."""
        value = self.value if monitor == self.monitor else None
        value = self.metrics.get(monitor) if value is None else value
        return value if value is not None and math.isfinite(value) else None

    @property
    def objective(self) -> Objective | None:
        """The metric and direction that the version was exported for, or None."""
        return Objective(self.monitor, self.mode) if self.monitor and self.mode else None

    def to_json(self) -> str:
        """Return the text of the manifest.

        Raises:
            ValueError: If a number is not finite.
            TypeError: If a value cannot be written as JSON.
        """
        content = {"schema": self.schema} | asdict(self)
        del content["path"], content["unread"]
        for name in _OPTIONAL:
            if content[name] is None:
                del content[name]
        for name in _OPTIONAL_IF_EMPTY:
            if not content[name]:
                del content[name]
        # A step or epoch may be an integer of NumPy, which `default` converts.
        return json.dumps(content, indent=1, allow_nan=False, default=operator.index) + "\n"


def withdrawn(records: Iterable[ExportRecord]) -> set[int]:
    """Return the versions that rollbacks have withdrawn.

    Args:
        records: The records of all versions in one base directory.
    """
    # A manifest may say anything, but it withdraws only versions before its own.
    return {
        version for record in records for version in record.withdrawn if version < record.version
    }


def standing(records: Sequence[ExportRecord]) -> Sequence[ExportRecord]:
    """Return the records that no rollback has withdrawn.

    Args:
        records: The records of all versions in one base directory.
    """
    gone = withdrawn(records)
    return [record for record in records if record.version not in gone] if gone else records


def manifest_digest(content: bytes) -> bytes:
    """Return the contents of the file `MANIFEST_DIGEST` for a manifest's contents."""
    return f"{hashlib.sha256(content).hexdigest()}  {Path(MANIFEST).name}\n".encode()


def read_record(version: Files) -> ExportRecord:
    """Return the record of a version.

    Raises:
        FileNotFoundError: If the version has no manifest, because another program wrote
            the version.
        DamagedVersionError: If the manifest cannot be read, or if its contents are not what
            this library writes.
    """
    try:
        status, content = version.read(MANIFEST, _MAX_BYTES + 1)
        # A link may lead out of the version, and a pipe may never end.
        if status.size is None:
            raise DamagedVersionError(
                f"The manifest '{version.root / MANIFEST}' is not a regular file."
            )
    except (FileNotFoundError, StorageError):
        raise  # The version has no manifest, or the whole store cannot be read.
    except OSError as error:
        raise DamagedVersionError(
            f"The manifest '{version.root / MANIFEST}' cannot be read: {error}."
        ) from error
    return parse_record(content, version.root)


def parse_record(content: bytes, version_dir: VersionPath) -> ExportRecord:
    """Return the record in the contents of a manifest.

    Args:
        content: The contents of the manifest.
        version_dir: The directory of the version.

    Raises:
        DamagedVersionError: If `ExportRecord.to_json` does not write such contents.
    """
    try:
        if len(content) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        record = _decoded(content.decode("utf-8"), version_dir)
        # A copy may have any name, except the number of another version.
        if record.version != (parse(version_dir.name) or record.version):
            raise ValueError(
                f"it says version {record.version}, but its directory is {version_dir.name!r}"
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
    """A key of a manifest, which is also an attribute of `ExportRecord`.

    Attributes:
        name: The name of the key.
        hint: The type of its value.
        default: The default value, or `msgspec.NODEFAULT` if the key is required.
    """

    name: str
    hint: Any
    default: Any

    @property
    def is_required(self) -> bool:
        return self.default is msgspec.NODEFAULT


@functools.cache
def _keys() -> list[_Key]:
    """Return the keys of a manifest, in order.

    These are the attributes of `ExportRecord` without `path` and `unread`.
    """
    hints = hints_of(ExportRecord)
    defaults: dict[str, Any] = {
        each.name: {} if each.default_factory is dict else each.default
        for each in fields(ExportRecord)
    }
    required = {name: msgspec.NODEFAULT for name in defaults if defaults[name] is MISSING}
    defaults |= required | {"schema": msgspec.NODEFAULT}
    return [_Key(name, hints[name], defaults[name]) for name in [*defaults][1:-1]]


@functools.cache
def _decoder() -> msgspec.json.Decoder[msgspec.Struct]:
    keys = [(key.name, key.hint, key.default) for key in _keys()]
    return msgspec.json.Decoder(msgspec.defstruct("Manifest", keys, kw_only=True))


def _fitted(content: Any, version_dir: VersionPath) -> ExportRecord:
    """Return the record in a manifest with a higher schema, or one that msgspec refused.

    A manifest with a higher schema is read as far as possible.

    Raises:
        ValueError: If the manifest has this library's schema and a wrong value, if the
            schema or the version cannot be read, or if the schema is too low. The message
            names the key.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}")
    schema = _value(content, "schema", Int64)
    if schema < SCHEMA:
        raise ValueError(f"expected schema {SCHEMA}, found {schema}")
    _value(content, "version", Int64)  # Every schema needs the version.
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
    """Return an empty value of a type, for an attribute that could not be read."""
    if get_origin(hint) is Annotated:
        return _nothing(hint.__origin__)
    if type(None) in get_args(hint):
        return None
    return {} if get_origin(hint) else hint()


def _numbers(metrics: Any) -> dict[str, float]:
    """Return the metrics that are numbers.

    Later versions of this library may write other kinds of metrics too.
    """
    numbers = {}
    for name, value in metrics.items() if isinstance(metrics, dict) else ():
        with suppress(ValueError):
            numbers[name] = fit(value, float, name)
    return numbers
