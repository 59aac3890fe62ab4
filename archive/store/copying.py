"""Publish and remove versions on file systems that cannot rename a directory.

Some network file systems cannot. There the files of a version are copied one by one, and
``saved_model.pb`` is copied last. The version counts from that moment on, until its removal
begins.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import StorageError
from .files import relative_files
from .versions import (
    MANIFEST,
    REMOVED,
    SAVED_MODEL,
    UNFINISHED,
    Numbers,
    is_marker,
    is_version,
    parse,
)

# Each writer puts a marker file into the directory that it writes. The name of the marker begins
# like this on this machine.
_OURS = f"{UNFINISHED}{re.sub('[^A-Za-z0-9]', '-', platform.node())}-"


def publish_by_copying(
    staged: Path,
    base_dir: Path,
    finish: Callable[[int], None],
    numbers: Numbers,
    flush: Callable[[Path], None] = lambda target: None,
) -> Path:
    """Copy a complete staged directory to the next version, and return its path.

    Args:
        staged: The directory with the complete version.
        base_dir: The directory in which the version appears.
        finish: Function that writes the files that depend on the version's number, as in
            `Store.commit`.
        numbers: The numbers that this writer has seen before.
        flush: Function that flushes a directory to the disk. It is called before
            ``saved_model.pb`` is copied, and again afterwards.

    Raises:
        StorageError: If a copy does not have the size of its original.
    """
    target, marker = _claim(base_dir, numbers)
    try:
        finish(int(target.name))
        names = sorted(relative_files(staged))
        names.remove(SAVED_MODEL)
        for name in names:
            _copy(staged / name, target / name)
        for directory in (path for path in staged.rglob("*") if path.is_dir()):
            (target / directory.relative_to(staged)).mkdir(parents=True, exist_ok=True)
        _confirm(staged, target, names)
        flush(target)
        _copy(staged / SAVED_MODEL, target / SAVED_MODEL)
        # All files are confirmed again. On a file system without locks, another writer may have
        # swept some of them.
        _confirm(staged, target, [*names, SAVED_MODEL])
        flush(target)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_in_place(target)
        raise
    # The version is published, even if the marker cannot be removed.
    with contextlib.suppress(OSError):
        marker.unlink()
    return target


def remove_in_place(version_dir: Path) -> None:
    """Delete a version file by file. It does not count as a version from the first step on.

    Args:
        version_dir: The directory of the version.

    Raises:
        FileNotFoundError: If the directory does not exist.
    """
    os.listdir(version_dir)
    marker = version_dir / f"{REMOVED}{uuid.uuid4().hex}"
    try:
        # Readers that know the version look whether its manifest is still the same file.
        os.rename(version_dir / MANIFEST, marker)
    except OSError:
        marker.write_bytes(b"")  # The version has no manifest.
    parts = [name for name in os.listdir(version_dir) if not is_marker(name)]
    parts.sort(key=lambda name: name != SAVED_MODEL)  # No server loads what is left then.
    for path in [*(version_dir / name for name in parts), version_dir]:
        with contextlib.suppress(FileNotFoundError):  # Another writer removes it too.
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def sweep_copies(base_dir: Path, is_alone: bool) -> None:
    """Finish the removals that dead writers began, and remove what they left unfinished.

    Args:
        base_dir: The base directory.
        is_alone: Whether no other writer on this machine can be writing now. This cannot
            be known of other machines. What their writers left unfinished stays, and does
            not count as a version.
    """
    for name in os.listdir(base_dir):
        if parse(name) is None:
            continue
        with contextlib.suppress(OSError):
            names = os.listdir(base_dir / name)
            is_removed = any(item.startswith(REMOVED) for item in names)
            is_ours = all(item.startswith(_OURS) for item in names if is_marker(item))
            if is_removed or (is_alone and is_ours and not is_version(names)):
                remove_in_place(base_dir / name)
            elif is_version(names):
                for marker in filter(is_marker, names):
                    (base_dir / name / marker).unlink()


def _claim(base_dir: Path, numbers: Numbers) -> tuple[Path, Path]:
    """Make a directory for the next version, and return it and the marker of this writer in it.

    No other writer has this directory.
    """
    while True:
        base_dir.mkdir(parents=True, exist_ok=True)
        target = base_dir / str(numbers.next(os.listdir(base_dir)))
        marker = target / f"{_OURS}{uuid.uuid4().hex}"
        target.mkdir(exist_ok=True)
        marker.write_bytes(b"")
        # If two writers do this at the same time, at least one of them sees both markers.
        if os.listdir(target) == [marker.name]:
            return target, marker
        marker.unlink()
        time.sleep(random.uniform(0, 0.1))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _confirm(staged: Path, target: Path, names: Iterable[str]) -> None:
    """Raise an error if a file is not in `target` with the size that it has in `staged`."""
    for name in names:
        if (target / name).stat().st_size != (staged / name).stat().st_size:
            raise StorageError(
                f"'{target / name}' is not as long as the file that was copied to it. The version "
                "is not published."
            )
