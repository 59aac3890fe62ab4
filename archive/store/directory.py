"""What a user can ask of a base directory, without TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from ..errors import (
    DamagedVersionError,
    ExportError,
    NewerVersionError,
    StorageError,
    VersionNotFoundError,
)
from . import publish as publishing
from .copying import SAVED_MODEL, is_marker, is_version
from .files import (
    FileInfo,
    fetch,
    identity_at,
    names_in,
    read_up_to,
    regular_size,
    relative_files,
    sha256_of,
    sync,
)
from .objective import Mode, Objective
from .paths import absolute_path, check_base_dir, version_path
from .record import (
    MANIFEST,
    MANIFEST_DIGEST,
    SCHEMA,
    ExportRecord,
    manifest_digest,
    parse_record,
    read_record,
)
from .remote import VersionPath
from .retention import RetentionPolicy, as_policy, removals
from .versions import Numbers, parse

# What a publish writes itself, of which the manifest does not tell the digest.
_OWN_FILES = {MANIFEST, MANIFEST_DIGEST}

_EMPTY = FileInfo(0, hashlib.sha256().hexdigest())

# A record, and the identity of the manifest it was read from.
_Known: TypeAlias = tuple[tuple[int, ...], ExportRecord]


class ExportDirectory:
    """The versions in a base directory: list, describe, verify, prune, publish.

    Reads only what is committed: a staged or half-removed version is never
    seen. Does not import TensorFlow.

    Args:
        base_dir: the directory that holds the versions. It need not exist yet.

    Example:

    >>> from keras_export_callbacks import ExportDirectory
    >>> directory = ExportDirectory("served/digits")
    >>> directory.versions()
    []
    """

    def __init__(self, base_dir: str | os.PathLike[str]) -> None:
        self.path = absolute_path(base_dir)
        self._known: dict[VersionPath, _Known] = {}
        self._told: set[VersionPath] = set()
        self._numbers = Numbers()

    def __repr__(self) -> str:
        return f"ExportDirectory({str(self.path)!r})"

    def versions(self) -> list[int]:
        """The numbers of all versions, ascending, whoever wrote them."""
        return sorted(self._version_dirs())

    def latest(self) -> ExportRecord | None:
        """The record of the newest version with a readable manifest, or None."""
        return next(iter(reversed(self.records())), None)

    def best(self, monitor: str, mode: Mode) -> ExportRecord | None:
        """The record with the best value of a metric, or None if none has it.

        Args:
            monitor: the metric's name, such as ``"val_accuracy"``.
            mode: ``"min"`` or ``"max"``.
        """
        return Objective(monitor, mode).best(self.records())

    def record(self, version: int) -> ExportRecord:
        """The record of one version.

        Raises:
            ExportError: there is no such version, it carries no manifest of
                ours, or the manifest is damaged.
        """
        record = self._record(version)
        self._warn_if_newer([record])
        return record

    def records(self) -> list[ExportRecord]:
        """The records of all versions that have a readable manifest, ascending."""
        return self.survey()[0]

    def survey(self) -> tuple[list[ExportRecord], list[DamagedVersionError]]:
        """`records`, and why each of the other manifests cannot be read."""
        found = {}
        damage = []
        for _, path in sorted(self._version_dirs().items()):
            try:
                found[path] = self._read(path)
            except FileNotFoundError:
                continue  # Another program wrote it, or it was removed meanwhile.
            except DamagedVersionError as error:
                damage.append(error)
        self._known = found
        records = [record for _, record in found.values()]
        self._warn_if_newer(records)
        return records, damage

    def verify(self, version: int) -> list[str]:
        """What is wrong with the files of a version; empty when it is sound.

        Every file is compared with the size and digest in the manifest, and the
        manifest with its own, so this reads the whole version.

        Raises:
            VersionNotFoundError: there is no such version.
        """
        return version_problems(self._path_of(version))

    def prune(self, policy: int | RetentionPolicy) -> list[int]:
        """Remove the versions that `policy` does not keep, and return their numbers.

        Only versions with a readable manifest are ever removed, never the
        newest, never the best by an objective they were exported for, and none
        that a later version of this library wrote.

        Args:
            policy: such as ``KeepLatest(3)``, or an int that means that.
        """
        chosen = as_policy(policy)
        removed: list[int] = []
        if chosen is None or not (doomed := removals(chosen, self.records())):
            return removed
        with _clear_errors(self.path), publishing.workspace(self.path) as space:
            for version in doomed:
                try:
                    publishing.remove(self.path / str(version), space)
                    removed.append(version)
                except FileNotFoundError:
                    continue  # Another writer removed it first.
                except OSError as error:
                    warnings.warn(
                        f"Version {version} in '{self.path}' could not be removed: {error}.",
                        stacklevel=2,
                    )
        return removed

    def publish(self, source_version_path: str | os.PathLike[str]) -> ExportRecord:
        """Publish a copy of a version, from here or elsewhere, as the next version here.

        Files are hard-linked where the file system allows, else copied.

        Args:
            source_version_path: the directory of a version with a manifest.

        Raises:
            ExportError: there is no such version, it does not verify, a later
                version of this library wrote it, or it cannot be written here.
        """
        source, version = version_path(source_version_path, "source_version_path=")
        record = ExportDirectory(source.parent)._record(version)
        if record.is_newer:
            raise NewerVersionError(
                f"'{source}' cannot be published: a later version of this library wrote it (its "
                f"manifest has schema {record.schema}, this one writes {SCHEMA}), and a copy would "
                "lose what only that one knows. Upgrade keras-export-callbacks."
            )
        check_base_dir(self.path)
        with _clear_errors(self.path), publishing.workspace(self.path) as space:
            staged = space.stage()
            for name in relative_files(source):
                if name not in _OWN_FILES and not is_marker(name):
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):  # It went away: told below.
                        fetch(source / name, staged / name)
            # The copy, so that what is published is what was verified.
            problems = [*_manifest_problems(source), *_differences(staged, record.files)]
            if problems:
                raise DamagedVersionError(f"'{source}' cannot be published: {'; '.join(problems)}.")
            return publish_record(
                staged, replace(record, path=staged), self.path, numbers=self._numbers
            )

    def _record(self, version: int) -> ExportRecord:
        path = self._path_of(version)
        try:
            return self._read(path)[1]
        except FileNotFoundError:
            raise DamagedVersionError(_without_manifest(path)) from None

    def _warn_if_newer(self, records: Iterable[ExportRecord]) -> None:
        """Say once of each version that a later version of this library wrote it."""
        for record in records:
            if record.is_newer and record.path not in self._told:
                self._told.add(record.path)
                warnings.warn(_newer(record), stacklevel=4)

    def _read(self, path: VersionPath) -> _Known:
        """The record in `path`, read again only if its manifest was replaced."""
        try:
            identity = identity_at(path / MANIFEST)
        except OSError:
            identity = ()  # `read_record` says what is wrong.
        known = self._known.get(path)
        return known if known and known[0] == identity else (identity, read_record(path))

    def _path_of(self, version: int) -> VersionPath:
        path = self.path / str(version)
        if parse(path.name) is not None and _is_version(path):
            return path
        held = self.versions()
        newest = ", ".join(["…"] * (len(held) > 10) + [str(number) for number in held[-10:]])
        raise VersionNotFoundError(
            f"There is no version {version} in '{self.path}'. It holds {newest or 'no versions'}."
        )

    def _version_dirs(self) -> dict[int, VersionPath]:
        try:
            names = names_in(self.path)
            self._numbers.see(names)
            versions = {
                version: self.path / str(version) for version in filter(None, map(parse, names))
            }
            return {version: path for version, path in versions.items() if _is_version(path)}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StorageError(f"'{self.path}' cannot be read: {error}.") from error


def publish_record(
    staged: Path,
    record: ExportRecord,
    base_dir: VersionPath,
    snapshot_time: float | None = None,
    check: Callable[[], None] = lambda: None,
    numbers: Numbers | None = None,
) -> ExportRecord:
    """Publish a staged version with its manifest; return the record as published.

    The version number and time are only known inside the commit, so the
    manifest is written there, last of all files.

    Args:
        staged: the complete version but for its manifest.
        record: what to write in it.
        base_dir: where the version appears.
        snapshot_time: when the snapshot ended, by `time.perf_counter`, for
            `write_seconds`; None leaves that as it is.
        check: called inside the commit, when no other writer can publish. If it
            raises, nothing is published.
        numbers: those that this writer has seen before.
    """

    def finish(version: int) -> None:
        nonlocal record
        check()
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = replace(record, version=version, created=created)
        if snapshot_time is not None:
            record = replace(record, write_seconds=time.perf_counter() - snapshot_time)
        content = record.to_json().encode("utf-8")
        # Read back, so that nothing is published that no one could read.
        record = parse_record(content, base_dir / str(version))
        manifest, digest = staged / MANIFEST, staged / MANIFEST_DIGEST
        manifest.parent.mkdir(exist_ok=True)
        manifest.write_bytes(content)
        digest.write_bytes(manifest_digest(content))
        for path in (manifest, digest, manifest.parent, staged):
            sync(path)

    publishing.publish(staged, base_dir, finish, numbers)
    return record


def _is_version(path: VersionPath) -> bool:
    if isinstance(path, Path) and path.is_symlink():
        return False
    try:
        return is_version(names_in(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # `verify` says why it cannot be read.


def version_problems(version_dir: VersionPath) -> list[str]:
    """How the files of a version, or of a copy of one, differ from what was published."""
    try:
        record = read_record(version_dir)
    except FileNotFoundError:
        return [_without_manifest(version_dir)]
    except DamagedVersionError as error:
        return [str(error)]
    if "files" in record.unread:
        return [
            f"the files of '{version_dir}' cannot be verified: a later version of this library "
            f"wrote its manifest (schema {record.schema}). Upgrade keras-export-callbacks"
        ]
    return [*_manifest_problems(version_dir), *_differences(version_dir, record.files)]


def _newer(record: ExportRecord) -> str:
    unread = f" Not read: {', '.join(record.unread)}." if record.unread else ""
    is_lost = "metrics" in record.unread
    worse = " A worse version may be published after it." if is_lost else ""
    return (
        f"A later version of this library wrote '{record.path}': its manifest has schema "
        f"{record.schema}, this one knows {SCHEMA}. It is not removed here.{unread}{worse} "
        "Upgrade keras-export-callbacks."
    )


def _without_manifest(version_dir: VersionPath) -> str:
    return f"'{version_dir}' has no '{MANIFEST}': this library did not write it, or it was lost."


def _manifest_problems(version_dir: VersionPath) -> list[str]:
    """What is wrong with a manifest that can be read, by its own digest."""
    digest = version_dir / MANIFEST_DIGEST
    try:
        if regular_size(digest) is None:
            return [f"{MANIFEST_DIGEST!r} is not a regular file"]
        expected = manifest_digest((version_dir / MANIFEST).read_bytes())
        # No more than that: it may be of any size.
        if read_up_to(digest, len(expected) + 1) == expected:
            return []
    except FileNotFoundError:
        return [f"{MANIFEST_DIGEST!r} is missing"]
    except OSError as error:
        return [f"{MANIFEST_DIGEST!r} cannot be read: {error.strerror or error}"]
    return [f"{MANIFEST!r} or {MANIFEST_DIGEST!r} has other contents than were published"]


def _differences(root: VersionPath, expected: Mapping[str, FileInfo]) -> list[str]:
    """How the files below `root` differ from those `expected`, but for the manifest."""
    found = set(relative_files(root)) - _OWN_FILES
    problems = []
    for name in sorted(found | expected.keys() | {SAVED_MODEL}):
        if name not in found:
            problems.append(f"{name!r} is missing")
        elif name not in expected:
            if not is_marker(name) or _difference(root / name, _EMPTY):
                problems.append(f"{name!r} was added")
        elif problem := _difference(root / name, expected[name]):
            problems.append(f"{name!r} {problem}")
    return problems


def _difference(path: VersionPath, expected: FileInfo) -> str | None:
    try:
        size = regular_size(path)
        if size is None:
            return "is not a regular file"
        if size != expected.size:
            return f"has {size} bytes, {expected.size} were published"
        if sha256_of(path) != expected.sha256:
            return "has other contents than were published"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None


@contextlib.contextmanager
def _clear_errors(base_dir: VersionPath) -> Iterator[None]:
    """Say of what the system refuses where it happened, as an error of ours."""
    try:
        yield
    except ExportError:
        raise
    except OSError as error:
        raise StorageError(f"'{base_dir}' cannot be written: {error}.") from error
