"""Copy a version to a local directory, and verify the copy."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..errors import DamagedVersionError, ExportValueError
from .files import FileInfo, Progress, counted, no_progress
from .record import read_record
from .remote import VersionPath
from .store import Files, open_store
from .threads import side_by_side
from .verify import OWN_FILES, manifest_problems, without_manifest
from .versions import is_marker


def download(version: Files, to: Path, progress: Progress = no_progress) -> Path:
    """Copy a version to a new or empty directory, which appears complete or not at all.

    Args:
        version: The files of the version.
        to: The directory.
        progress: A function that is called with the size of each block, in bytes.

    Returns:
        The directory.

    Raises:
        ExportError: If `to` is not empty, or the version is not what was published.
    """
    if os.path.lexists(to) and not (to.is_dir() and not os.listdir(to)):
        raise ExportValueError(
            f"Received to='{to}', which is not empty. Expected a new or an empty directory."
        )
    try:
        record = read_record(version)
    except FileNotFoundError:
        raise DamagedVersionError(without_manifest(version.root)) from None
    if "files" in record.unread:
        raise DamagedVersionError(
            f"'{version.root}' cannot be verified: a later version of this library wrote its "
            "manifest. Upgrade keras-export-callbacks."
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    partial_copy = to.with_name(f".{to.name}-{uuid.uuid4().hex}")
    try:
        problems = manifest_problems(version)
        names = {name for name in version.files() if not is_marker(name)}
        problems += [f"{name!r} was added" for name in names - record.files.keys() - OWN_FILES]
        problems += [f"{name!r} is missing" for name in record.files.keys() - names]
        if not problems:
            jobs = [
                partial(_copy, version, name, partial_copy / name, record.files.get(name), progress)
                for name in sorted(names)
            ]
            problems = [problem for problem in side_by_side(jobs) if problem is not None]
        if problems:
            raise DamagedVersionError(
                f"'{version.root}' cannot be downloaded: {'; '.join(sorted(problems))}."
            )
        os.rename(partial_copy, to)
    finally:
        shutil.rmtree(partial_copy, ignore_errors=True)
    return to


@contextlib.contextmanager
def local_copy(path: VersionPath) -> Iterator[Path]:
    """The local directory of a version. Of a version elsewhere, a verified copy for a while."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="keras-export-") as directory:
        yield download(open_store(path), Path(directory, path.name))


def _copy(
    version: Files, name: str, target: Path, expected: FileInfo | None, progress: Progress
) -> str | None:
    """Copy a file. Return how it differs from what was published, or None."""
    target.parent.mkdir(parents=True, exist_ok=True)
    status = version.stat(name)
    if status is None:
        return f"{name!r} is missing"
    if status.size is None:
        return f"{name!r} is not a regular file"
    size, digest = 0, hashlib.sha256()
    try:
        with open(target, "xb") as file:
            for block in counted(version.blocks(name), progress):
                file.write(block)
                digest.update(block)
                size += len(block)
    except FileNotFoundError:
        return f"{name!r} is missing"
    if expected is not None and (size, digest.hexdigest()) != (expected.size, expected.sha256):
        return f"{name!r} has other contents than were published"
    return None
