"""Copy a version to a local directory, and verify the copy."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..errors import DamagedVersionError, ExportValueError
from .files import Progress, counted, no_progress
from .record import read_record
from .remote import VersionPath
from .store import Files, open_store
from .threads import side_by_side
from .verify import problems_of, unverifiable, without_manifest
from .versions import is_marker, parse


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
        raise DamagedVersionError(f"{unverifiable(record)}.")
    if parse(to.name) not in (None, record.version):
        raise ExportValueError(
            f"Received to='{to}' for version {record.version}. A directory with a number as its "
            "name counts as the version with this number. Expected another name, such as "
            f"'{to.with_name(f'version-{record.version}')}'."
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    partial_copy = to.with_name(f".{to.name}-{uuid.uuid4().hex}")
    try:
        names = [name for name in version.files() if not is_marker(name)]
        copies = [partial(_copy, version, name, partial_copy / name, progress) for name in names]
        side_by_side(copies, version.reads_at_once)
        if problems := problems_of(open_store(partial_copy)):
            raise DamagedVersionError(
                f"'{version.root}' cannot be downloaded: {'; '.join(problems)}."
            )
        os.rename(partial_copy, to)
    finally:
        shutil.rmtree(partial_copy, ignore_errors=True)
    return to


@contextlib.contextmanager
def local_copy(path: VersionPath) -> Iterator[Path]:
    """Yield a local directory with a version.

    If the version is not in the local file system, this is a verified copy. The copy is
    deleted after the ``with`` block.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="keras-export-") as directory:
        yield download(open_store(path), Path(directory, path.name))


def _copy(version: Files, name: str, target: Path, progress: Progress) -> None:
    """Copy a file if it is there. Missing files are found when the copy is verified."""
    status = version.stat(name)
    if status is None or status.size is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError), open(target, "xb") as file:
        file.writelines(counted(version.blocks(name), progress))
