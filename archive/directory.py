"""What a user can ask of a base directory, without TensorFlow."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from . import publish as publishing
from .errors import DamagedVersionError, VersionNotFoundError
from .files import identity_of, link_or_copy, relative_files, sha256_of, sync
from .objective import Mode, Objective
from .record import MANIFEST, ExportRecord, read_record
from .retention import RetentionPolicy, as_policy, removals
from .versions import parse


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
        self.path = Path(base_dir)
        self._known: dict[Path, tuple[tuple[int, ...], ExportRecord]] = {}

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
        path = self._path_of(version)
        try:
            return self._read(path)
        except FileNotFoundError:
            raise DamagedVersionError(
                f"Version {version} in '{self.path}' has no '{MANIFEST}': "
                "it was not written by this library, or lost it."
            ) from None

    def records(self) -> list[ExportRecord]:
        """The records of all versions that have a readable manifest, ascending."""
        found = []
        for _, path in sorted(self._version_dirs().items()):
            try:
                found.append(self._read(path))
            except (DamagedVersionError, OSError):
                continue
        return found

    def _read(self, path: Path) -> ExportRecord:
        """The record in `path`, read again only if its manifest was replaced."""
        identity = identity_of(os.stat(path / MANIFEST))
        if path not in self._known or self._known[path][0] != identity:
            self._known[path] = (identity, read_record(path))
        return self._known[path][1]

    def verify(self, version: int) -> list[str]:
        """What is wrong with the files of a version; empty when it is sound.

        Every file is compared with the size and digest in the manifest, so this
        reads the whole version.

        Raises:
            VersionNotFoundError: there is no such version.
        """
        path = self._path_of(version)
        try:
            expected = dict(self.record(version).files)
        except DamagedVersionError as error:
            return [str(error)]
        problems = []
        for name in sorted(relative_files(path)):
            if name == MANIFEST:
                continue
            if name not in expected:
                problems.append(f"'{name}' was added")
                continue
            info = expected.pop(name)
            if (path / name).is_symlink() or not (path / name).is_file():
                problems.append(f"'{name}' is not a regular file")
            elif (size := (path / name).stat().st_size) != info.size:
                problems.append(f"'{name}' has {size} bytes, {info.size} were published")
            elif sha256_of(path / name) != info.sha256:
                problems.append(f"'{name}' has other contents than were published")
        problems += [f"'{name}' is missing" for name in sorted(expected)]
        return problems

    def prune(self, policy: int | RetentionPolicy) -> list[int]:
        """Remove the versions that `policy` does not keep, and return their numbers.

        Only versions with a readable manifest are ever removed, never the
        newest, and never the best by an objective they were exported for.

        Args:
            policy: such as ``KeepLatest(3)``, or an int that means that.
        """
        chosen = as_policy(policy)
        removed: list[int] = []
        if chosen is None or not (doomed := removals(chosen, self.records())):
            return removed
        with publishing.workspace(self.path) as space:
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
            ExportError: there is no such version, or it does not verify.
        """
        source = Path(source_version_path)
        version = parse(source.name)
        if version is None:
            raise VersionNotFoundError(
                f"Received source_version_path='{source}'. Expected the directory of a version, "
                "whose name is its number, such as 'trials/trial_0/7'."
            )
        if problems := ExportDirectory(source.parent).verify(version):
            raise DamagedVersionError(f"'{source}' is not published: {'; '.join(problems)}.")
        record = read_record(source)
        publishing.check_base_dir(self.path)
        with publishing.workspace(self.path) as space:
            staged = space.stage()
            for name in record.files:
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source / name, staged / name)
            return publish_record(staged, replace(record, path=staged), self.path)

    def _path_of(self, version: int) -> Path:
        try:
            return self._version_dirs()[version]
        except KeyError:
            held = ", ".join(map(str, self.versions()))
            raise VersionNotFoundError(
                f"There is no version {version} in '{self.path}'. "
                + (f"It holds {held}." if held else "It holds no versions.")
            ) from None

    def _version_dirs(self) -> dict[int, Path]:
        try:
            with os.scandir(self.path) as entries:
                return {
                    version: self.path / entry.name
                    for entry in entries
                    if (version := parse(entry.name)) is not None
                    and entry.is_dir(follow_symlinks=False)
                }
        except (FileNotFoundError, NotADirectoryError):
            return {}


def publish_record(
    staged: Path, record: ExportRecord, base_dir: Path, snapshot_time: float | None = None
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
    """

    def finish(version: int) -> None:
        nonlocal record
        record = replace(
            record,
            version=version,
            created=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            path=base_dir / str(version),
        )
        if snapshot_time is not None:
            record = replace(record, write_seconds=time.perf_counter() - snapshot_time)
        manifest = staged / MANIFEST
        manifest.parent.mkdir(exist_ok=True)
        manifest.write_text(record.to_json(), encoding="utf-8")
        for path in (manifest, manifest.parent, staged):
            sync(path)

    publishing.publish(staged, base_dir, finish)
    return record
