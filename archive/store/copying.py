"""Publishing where a directory cannot be renamed: everything first, ``saved_model.pb`` last.

So it is on some network file systems. There a version is one as soon as its
``saved_model.pb`` is there, unless a removal of it began.
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
from .versions import REMOVED, SAVED_MODEL, UNFINISHED, Numbers, is_marker, is_version, parse

# Each writer marks what it is writing with a marker of its own, that tells its machine.
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
        staged: the complete version.
        base_dir: where the version appears.
        finish: as for `Store.commit`.
        numbers: those that this writer has seen before.
        flush: called before the version appears, and once more after it.

    Raises:
        StorageError: what was written is not there.
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
        # All of it: on a file system without locks another writer may have swept it away.
        _confirm(staged, target, [*names, SAVED_MODEL])
        flush(target)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_in_place(target)
        raise
    # It is published, whether or not this still succeeds.
    with contextlib.suppress(OSError):
        marker.unlink()
    return target


def remove_in_place(version_dir: Path, after_mark: Callable[[], None] = lambda: None) -> None:
    """Delete a version where it is; from the first step on it is none any more.

    Args:
        version_dir: the directory of the version.
        after_mark: called when the version is marked, and not yet touched.

    Raises:
        FileNotFoundError: there is nothing.
    """
    os.listdir(version_dir)
    (version_dir / f"{REMOVED}{uuid.uuid4().hex}").write_bytes(b"")
    after_mark()
    parts = [name for name in os.listdir(version_dir) if not is_marker(name)]
    parts.sort(key=lambda name: name != SAVED_MODEL)  # So that no server loads the rest.
    for path in [*(version_dir / name for name in parts), version_dir]:
        with contextlib.suppress(FileNotFoundError):  # Another writer does the same.
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def sweep_copies(base_dir: Path, is_alone: bool) -> None:
    """Finish the removals that dead writers began, and remove what they did not finish writing.

    Args:
        base_dir: the base directory.
        is_alone: whether no other writer on this machine can be writing now. Nobody
            can tell of other machines: what was not finished there stays, and is no version.
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
    """The directory of the next version, which no other writer has, and our marker in it."""
    while True:
        base_dir.mkdir(parents=True, exist_ok=True)
        target = base_dir / str(numbers.next(os.listdir(base_dir)))
        marker = target / f"{_OURS}{uuid.uuid4().hex}"
        target.mkdir(exist_ok=True)
        marker.write_bytes(b"")
        # Of two writers that do this at once, the later one sees both markers, or both do.
        if os.listdir(target) == [marker.name]:
            return target, marker
        marker.unlink()
        time.sleep(random.uniform(0, 0.1))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _confirm(staged: Path, target: Path, names: Iterable[str]) -> None:
    """Raise unless files are where they were copied to, in full."""
    for name in names:
        if (target / name).stat().st_size != (staged / name).stat().st_size:
            raise StorageError(f"'{target / name}' is not as long as it was written.")
