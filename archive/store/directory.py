"""`ExportDirectory`, with which users look after the versions in a base directory."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ..checks import is_whole
from ..errors import (
    DamagedVersionError,
    ExportError,
    ExportTypeError,
    ExportValueError,
    NewerVersionError,
    StorageError,
    VersionNotFoundError,
)
from .below import no_versions, versions_below
from .download import download
from .files import Identity, Progress, clear_errors, no_progress
from .garbage import no_garbage_collection
from .objective import Mode, Objective
from .paths import local_path, path_text
from .publish import publish_record
from .record import SCHEMA, ExportRecord, read_record, standing, withdrawn
from .remote import VersionPath
from .retention import RetentionPolicy, as_policy, removals
from .store import Files, Store, open_store, version_at
from .threads import side_by_side
from .verify import OWN_FILES, differences, manifest_problems, problems_of, without_manifest
from .versions import MANIFEST, is_marker, parse

# The identity of a manifest, and the record that was read from it.
_Known: TypeAlias = tuple[Identity | None, ExportRecord]


class ExportDirectory:
    """Lists, verifies, publishes and removes the versions in a base directory.

    It sees only published versions. Versions that are still being written or removed do
    not count. It does not import TensorFlow.

    Args:
        base_dir: The directory that holds the versions, or the URL of one in a bucket, such
            as ``"s3://bucket/served"``. It does not need to exist yet.

    Examples:
        >>> from keras_export_callbacks import ExportDirectory
        >>> directory = ExportDirectory("served/digits")
        >>> directory.versions()
        []
    """

    def __init__(self, base_dir: str | os.PathLike[str]) -> None:
        self._set(open_store(base_dir))

    @classmethod
    def over(cls, store: Store) -> ExportDirectory:
        """Return the `ExportDirectory` of a store that is already open."""
        directory = cls.__new__(cls)
        directory._set(store)
        return directory

    def _set(self, store: Store) -> None:
        self.store = store
        # The manifests of the last survey, or None if one of them could not be read. Then the
        # records of that survey, by version.
        self._known: tuple[dict[int, Identity | None] | None, dict[int, _Known]] = None, {}
        self._told: set[VersionPath] = set()

    @property
    def path(self) -> VersionPath:
        """The base directory."""
        return self.store.root

    def __repr__(self) -> str:
        return f"ExportDirectory({str(self.path)!r})"

    def versions(self) -> list[int]:
        """Return the numbers of all versions in ascending order.

        Versions that another program wrote are included.
        """
        return sorted(self._manifests())

    def latest(self) -> ExportRecord | None:
        """Return the record of the newest version that has a readable manifest, or None."""
        return next(iter(reversed(self.records())), None)

    def best(self, monitor: str, mode: Mode) -> ExportRecord | None:
        """Return the record with the best value of a metric.

        Args:
            monitor: String. The metric's name, such as ``"val_accuracy"``.
            mode: ``"min"`` if lower is better, or ``"max"`` if higher is better.

        Returns:
            An `ExportRecord`, or None if no version has a value of the metric. Versions
            that a rollback has withdrawn do not count.

        Raises:
            ExportValueError: If an argument cannot be used.
        """
        return Objective(monitor, mode).best(standing(self.records()))

    def record(self, version: int) -> ExportRecord:
        """Return the record of one version.

        Args:
            version: Int. The number of the version.

        Raises:
            ExportError: If the version does not exist, has no manifest, or has a manifest
                that is damaged.
        """
        record = _record_in(self._files_of(version))
        self._warn_if_newer([record])
        return record

    def records(self) -> list[ExportRecord]:
        """Return the records of all versions that have a readable manifest, oldest first."""
        return self.survey()[0]

    def survey(self) -> tuple[list[ExportRecord], list[DamagedVersionError]]:
        """Return the result of `records`, and an error for each manifest that cannot be read."""
        manifests = self._manifests()
        surveyed, known_records = self._known
        if manifests == surveyed:
            return [record for _, record in known_records.values()], []
        unread = [
            version
            for version, identity in sorted(manifests.items())
            if identity is None or known_records.get(version, (None,))[0] != identity
        ]
        with no_garbage_collection():
            read = [partial(self._try_to_read, version) for version in unread]
            results = dict(zip(unread, side_by_side(read, self.store.reads_at_once), strict=True))
        found = {}
        damage = []
        for version in sorted(manifests):
            result = results[version] if version in results else known_records[version][1]
            if isinstance(result, DamagedVersionError):
                damage.append(result)
            elif result is not None:
                found[version] = manifests[version], result
        # If a manifest was missing or could not be read, the next survey reads again.
        is_complete = len(found) == len(manifests) and None not in manifests.values()
        self._known = manifests if is_complete else None, found
        records = [record for _, record in found.values()]
        self._warn_if_newer(records)
        return records, damage

    def verify(self, version: int, progress: Progress = no_progress) -> list[str]:
        """Compare every byte of a version with what was published.

        Every file is compared with its size and digest in the manifest. The manifest is
        compared with its own digest. Thus this reads the whole version.

        Args:
            version: Int. The number of the version.
            progress: A function that is called with the size of each block that was read,
                in bytes.

        Returns:
            A list with one text per problem. The list is empty if the version verifies.

        Raises:
            VersionNotFoundError: If the version does not exist.
        """
        return problems_of(self._files_of(version), progress)

    def prune(self, policy: int | RetentionPolicy) -> list[int]:
        """Remove the versions that a policy does not keep, and return their numbers.

        The newest version always stays, and so does the best version by each metric that
        a version was exported for. Versions without a readable manifest, and versions that
        a later version of this library wrote, also stay.

        Args:
            policy: A retention policy such as ``KeepLatest(3)``, or an int. The int ``3``
                means ``KeepLatest(3)``.

        Returns:
            The numbers of the removed versions, as a list of ints. A version that cannot
            be removed is named in a warning instead.

        Raises:
            ExportError: If `policy` is not a policy or an int of at least 1, or if the
                directory cannot be read or written.
        """
        chosen = as_policy(policy, "policy")
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
                    raise  # The other versions could not be removed either.
                except OSError as error:
                    warnings.warn(
                        f"Version {version} in '{self.path}' could not be removed: {error}.",
                        stacklevel=2,
                    )
        return removed

    def publish(self, source_version_path: str | os.PathLike[str]) -> ExportRecord:
        """Publish a copy of a version as the next version in this directory.

        The copy is verified before it is published. Its files are hard links where the file
        system allows it.

        Args:
            source_version_path: The directory of the version to copy. It may be in this or
                another base directory, or a copy with any name. It needs a manifest.

        Returns:
            The `ExportRecord` of the new version.

        Raises:
            ExportError: If the version does not exist or does not verify, if a later
                version of this library wrote it, or if nothing can be written here.
        """
        copy = open_store(path_text(source_version_path, "source_version_path="))
        with _readable(copy.root):
            found = version_at(copy.root)
            is_copy = parse(copy.root.name) is None and copy.exists()
            has_manifest = is_copy and copy.stat(MANIFEST) is not None
        if found is not None:
            base, version = found
            is_here = base.root == self.path
            source = base.at(str(version))
            return self._publish(source, str(version) if is_here else str(source.root))
        if has_manifest:
            return self._publish(copy, str(copy.root))
        raise _no_source(copy)

    def rollback(self, version: int | None = None) -> ExportRecord:
        """Publish an older version again, and withdraw the versions after it.

        A model server then serves the older version. Withdrawn versions stay where they
        are, but do not count as the best any more: `ExportOnImprove` does not have to beat
        them, and `KeepBest` does not keep them.

        Args:
            version: Int. The number of the version to go back to. By default, it is the
                version before the newest one that was not withdrawn. Thus each call goes
                back one more version.

        Returns:
            The `ExportRecord` of the new version. Its `copied_from` and `withdrawn` say
            what happened.

        Raises:
            ExportError: If there is no version to go back to, or if it cannot be published
                again.

        Examples:
            >>> import keras
            >>> from keras_export_callbacks import ExportDirectory, Exporter
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> with Exporter("rolled", model, log_dir=None) as exporter:
            ...     records = [exporter.export().result() for _ in range(2)]
            >>> record = ExportDirectory("rolled").rollback()
            >>> record.version, record.copied_from, record.withdrawn
            (3, '1', (2,))
        """
        target = None if version is None else _number(version)
        versions, records = self.versions(), self.records()
        if not versions:
            raise VersionNotFoundError(no_versions(self.store))
        origins = _origins(versions, records)
        newest = versions[-1]
        if target == newest:
            raise ExportValueError(f"Version {target} is already the newest in '{self.path}'.")
        if target is None:
            gone = withdrawn(records)
            earlier = [each for each in versions if each < origins[newest] and each not in gone]
            if not earlier:
                others = " To publish one that was withdrawn, name it." if gone else ""
                raise VersionNotFoundError(
                    f"'{self.path}' has no version to go back to from version {newest}.{others}"
                )
            target = earlier[-1]
        files = self._files_of(target)
        origin = origins.get(target, target)
        later = [each for each in versions if each > origin and origins[each] != origin]
        try:
            return self._publish(files, str(target), later)
        except (DamagedVersionError, NewerVersionError) as error:
            if version is not None:
                raise
            raise type(error)(
                f"{error} Pass the version to go back to, instead of {target}."
            ) from error

    def _publish(self, origin: Files, copied_from: str, later: Iterable[int] = ()) -> ExportRecord:
        source = origin.root
        record = _record_in(origin)
        if record.is_newer:
            raise NewerVersionError(
                f"'{source}' cannot be published: a later version of this library wrote it. Its "
                f"manifest has schema {record.schema}, but the installed library writes schema "
                f"{SCHEMA}. A copy would lose what only the later version can read. Upgrade "
                "keras-export-callbacks."
            )
        self.store.check()
        with clear_errors(self.path), self.store.stage() as staged:
            for name in origin.files():
                if name not in OWN_FILES and not is_marker(name):
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):  # It is reported below.
                        origin.fetch(name, staged / name)
            # The copy is verified, and not the source, because the copy is published.
            found = differences(open_store(staged), record.files)
            if problems := [*manifest_problems(origin), *found]:
                raise DamagedVersionError(f"'{source}' cannot be published: {'; '.join(problems)}.")
            record = replace(record, path=staged, copied_from=copied_from, withdrawn=tuple(later))
            return publish_record(staged, record, self.store)

    def download(
        self, version: int, to: str | os.PathLike[str], progress: Progress = no_progress
    ) -> Path:
        """Copy a version to a local directory.

        The copy is compared with what was published. It appears complete or not at all. Its
        files are not hard links to the files of the version.

        Args:
            version: Int. The number of the version.
            to: The path of the copy. It must not exist yet, or be an empty directory.
            progress: A function that is called with the size of each block that was copied,
                in bytes. Several threads call it.

        Returns:
            The path of the copy, as an absolute `Path`.

        Raises:
            ExportError: If the version does not exist or does not verify, or if `to` is not
                empty.
        """
        with clear_errors(to):
            return download(self._files_of(version), local_path(to), progress)

    def _warn_if_newer(self, records: Iterable[ExportRecord]) -> None:
        """Warn of versions that a later version of this library wrote, once for each."""
        for record in records:
            if record.is_newer and record.path not in self._told:
                self._told.add(record.path)
                warnings.warn(_newer(record), stacklevel=4)

    def _try_to_read(self, version: int) -> ExportRecord | DamagedVersionError | None:
        """Return the record of a version.

        Returns:
            The error if the manifest is damaged, or None if the version has no manifest.
        """
        try:
            return read_record(self.store.at(str(version)))
        except FileNotFoundError:
            return None  # Another program wrote it, or it was removed meanwhile.
        except DamagedVersionError as error:
            return error

    def _manifests(self) -> dict[int, Identity | None]:
        with _readable(self.path):
            return self.store.versions()

    def _files_of(self, version: int) -> Files:
        number = _number(version)
        if parse(str(number)) is not None and self.store.has(number):
            return self.store.at(str(number))
        raise self._no_version(number)

    def _no_version(self, version: int) -> VersionNotFoundError:
        held = self.versions()
        below = "" if held else versions_below(self.store)
        return VersionNotFoundError(
            f"There is no version {version} in '{self.path}'. It holds {_listed(held)}.{below}"
        )


def _number(version: int) -> int:
    """Return the number of a version that a user has passed."""
    if is_whole(version):
        return int(version)
    raise ExportTypeError(
        f"Received version={version!r} of type {type(version)}. Expected the number of a version, "
        "as an int such as 2."
    )


def _listed(versions: Sequence[int]) -> str:
    newest = ", ".join(["…"] * (len(versions) > 10) + [str(number) for number in versions[-10:]])
    return newest or "no versions"


def _no_source(store: Store) -> VersionNotFoundError:
    """Return the error about a path that is neither a version nor a copy of one."""
    path, number = store.root, parse(store.root.name)
    is_there = store.exists()
    held = ExportDirectory.over(store).versions() if is_there else []
    if held:
        return VersionNotFoundError(
            f"'{path}' is a base directory, which holds {_listed(held)}. Expected one of its "
            f"versions, such as '{path / str(held[-1])}'."
        )
    if number is not None:
        return ExportDirectory(path.parent)._no_version(number)
    if not is_there:
        return VersionNotFoundError(
            f"There is no directory '{path}'. Expected a version, such as 'served/7', or a copy of "
            "one."
        )
    return VersionNotFoundError(
        f"'{path}' has no '{MANIFEST}'. Expected a version that this library published, or a "
        f"complete copy of one.{versions_below(store)}"
    )


@contextlib.contextmanager
def _readable(base_dir: VersionPath) -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except OSError as error:
        raise StorageError(f"'{base_dir}' cannot be read: {error}.") from error


def _origins(versions: Iterable[int], records: Iterable[ExportRecord]) -> dict[int, int]:
    """Return the version that each version is a copy of, in the same directory, or itself."""
    copies = {record.version: parse(record.copied_from or "") for record in records}
    origins: dict[int, int] = {}
    for version in sorted(versions):
        copied = copies.get(version) or version
        # A manifest may say anything, so only an older version counts.
        origins[version] = origins.get(copied, copied) if copied < version else version
    return origins


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
        f"A later version of this library wrote '{record.path}'. Its manifest has schema "
        f"{record.schema}, but the installed library knows schema {SCHEMA}. This directory is "
        f"not removed.{unread}{worse} Upgrade keras-export-callbacks."
    )
