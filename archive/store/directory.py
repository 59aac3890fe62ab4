"""What a user can ask of a base directory, without TensorFlow."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ..errors import (
    DamagedVersionError,
    ExportError,
    NewerVersionError,
    StorageError,
    VersionNotFoundError,
)
from .download import download
from .files import Identity, clear_errors
from .objective import Mode, Objective
from .paths import local_path
from .publish import publish_record
from .record import SCHEMA, ExportRecord, read_record
from .remote import VersionPath
from .retention import RetentionPolicy, as_policy, removals
from .store import Files, Store, open_store, version_path
from .threads import side_by_side
from .verify import OWN_FILES, differences, manifest_problems, problems_of, without_manifest
from .versions import is_marker, parse

# A record, and the identity of the manifest it was read from.
_Known: TypeAlias = tuple[Identity | None, ExportRecord]


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
        self._set(open_store(base_dir))

    @classmethod
    def over(cls, store: Store) -> ExportDirectory:
        """The versions in a store that is open already."""
        directory = cls.__new__(cls)
        directory._set(store)
        return directory

    def _set(self, store: Store) -> None:
        self.store = store
        # What was surveyed last, if all of it could be read; and the records by version.
        self._known: tuple[dict[int, Identity | None] | None, dict[int, _Known]] = None, {}
        self._told: set[VersionPath] = set()

    @property
    def path(self) -> VersionPath:
        """The base directory."""
        return self.store.root

    def __repr__(self) -> str:
        return f"ExportDirectory({str(self.path)!r})"

    def versions(self) -> list[int]:
        """The numbers of all versions, ascending, whoever wrote them."""
        return sorted(self._manifests())

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
        record = _record_in(self._files_of(version))
        self._warn_if_newer([record])
        return record

    def records(self) -> list[ExportRecord]:
        """The records of all versions that have a readable manifest, ascending."""
        return self.survey()[0]

    def survey(self) -> tuple[list[ExportRecord], list[DamagedVersionError]]:
        """`records`, and why each of the other manifests cannot be read."""
        manifests = self._manifests()
        surveyed, known_records = self._known
        if manifests == surveyed:
            return [record for _, record in known_records.values()], []
        found = {}
        damage = []
        read = [
            partial(self._try_to_read, version, identity, known_records.get(version))
            for version, identity in sorted(manifests.items())
        ]
        # Each is a request, where it is no local file.
        is_far = not isinstance(self.path, Path)
        results = side_by_side(read, 16) if is_far else [each() for each in read]
        for version, result in zip(sorted(manifests), results, strict=True):
            if isinstance(result, DamagedVersionError):
                damage.append(result)
            elif result is not None:
                found[version] = result
        # A manifest that cannot be read, or was not there, may be another the next time.
        is_complete = len(found) == len(manifests) and None not in manifests.values()
        self._known = manifests if is_complete else None, found
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
        return problems_of(self._files_of(version))

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
        with clear_errors(self.path):
            self.store.sweep()
            for version in doomed:
                try:
                    self.store.remove(version)
                    removed.append(version)
                except FileNotFoundError:
                    continue  # Another writer removed it first.
                except StorageError:
                    raise  # Nor can the others be removed.
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
        origin = ExportDirectory(source.parent)._files_of(version)
        record = _record_in(origin)
        if record.is_newer:
            raise NewerVersionError(
                f"'{source}' cannot be published: a later version of this library wrote it (its "
                f"manifest has schema {record.schema}, this one writes {SCHEMA}), and a copy would "
                "lose what only that one knows. Upgrade keras-export-callbacks."
            )
        self.store.check()
        with clear_errors(self.path), self.store.stage() as staged:
            for name in origin.files():
                if name not in OWN_FILES and not is_marker(name):
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):  # It went away: told below.
                        origin.fetch(name, staged / name)
            # The copy, so that what is published is what was verified.
            found = differences(open_store(staged), record.files)
            if problems := [*manifest_problems(origin), *found]:
                raise DamagedVersionError(f"'{source}' cannot be published: {'; '.join(problems)}.")
            return publish_record(staged, replace(record, path=staged), self.store)

    def download(self, version: int, to: str | os.PathLike[str]) -> Path:
        """Copy a version to a local directory, and return its path.

        The copy is compared with what was published. It appears complete, or not
        at all, and shares no bytes with the version.

        Args:
            version: the number of the version.
            to: a new or an empty directory.

        Raises:
            ExportError: there is no such version, it does not verify, or there is
                something in `to`.
        """
        with clear_errors(to):
            return download(self._files_of(version), local_path(to))

    def _warn_if_newer(self, records: Iterable[ExportRecord]) -> None:
        """Say once of each version that a later version of this library wrote it."""
        for record in records:
            if record.is_newer and record.path not in self._told:
                self._told.add(record.path)
                warnings.warn(_newer(record), stacklevel=4)

    def _try_to_read(
        self, version: int, identity: Identity | None, known: _Known | None
    ) -> _Known | DamagedVersionError | None:
        """The record of a version, read again only if its manifest may have been replaced."""
        if known is not None and identity is not None and known[0] == identity:
            return known
        try:
            return identity, read_record(self.store.at(str(version)))
        except FileNotFoundError:
            return None  # Another program wrote it, or it was removed meanwhile.
        except DamagedVersionError as error:
            return error

    def _manifests(self) -> dict[int, Identity | None]:
        with _readable(self.path):
            return self.store.versions()

    def _files_of(self, version: int) -> Files:
        if parse(str(version)) is not None and self.store.has(version):
            return self.store.at(str(version))
        held = self.versions()
        newest = ", ".join(["…"] * (len(held) > 10) + [str(number) for number in held[-10:]])
        raise VersionNotFoundError(
            f"There is no version {version} in '{self.path}'. It holds {newest or 'no versions'}."
        )


@contextlib.contextmanager
def _readable(base_dir: VersionPath) -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except OSError as error:
        raise StorageError(f"'{base_dir}' cannot be read: {error}.") from error


def _record_in(version: Files) -> ExportRecord:
    try:
        return read_record(version)
    except FileNotFoundError:
        raise DamagedVersionError(without_manifest(version.root)) from None


def _newer(record: ExportRecord) -> str:
    unread = f" Not read: {', '.join(record.unread)}." if record.unread else ""
    is_lost = "metrics" in record.unread
    worse = " A worse version may be published after it." if is_lost else ""
    return (
        f"A later version of this library wrote '{record.path}': its manifest has schema "
        f"{record.schema}, this one knows {SCHEMA}. It is not removed here.{unread}{worse} "
        "Upgrade keras-export-callbacks."
    )
