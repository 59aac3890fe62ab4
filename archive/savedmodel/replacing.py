"""Replaces a SavedModel at a path that the user chose. The new one is written beside it first."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from ..errors import ExportValueError, StorageError
from ..store.files import sync, sync_tree


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a directory to fill. It takes the place of `target` if the block raises no error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        staged.mkdir()
        yield staged
        sync_tree(staged)
        try:
            _swap(staged, target)
        except OSError as error:
            raise StorageError(f"'{target}' cannot be replaced: {error}.") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def check_replaceable(target: Path) -> None:
    """Raise an error if `target` exists and is neither a SavedModel nor an empty directory.

    Raises:
        ExportValueError: If `target` holds something that is not a SavedModel.
    """
    if not os.path.lexists(target):
        return
    is_directory = target.is_dir() and not target.is_symlink()
    if is_directory and (not any(target.iterdir()) or (target / "saved_model.pb").is_file()):
        return
    raise ExportValueError(
        f"Received filepath='{target}', which holds something that is not a SavedModel. Expected a "
        "path that does not exist, an empty directory, or a SavedModel to replace."
    )


def _swap(staged: Path, target: Path) -> None:
    """Move `staged` to `target`, and delete what was there."""
    if target.exists():
        old = staged.with_name(f"{staged.name}.old")
        os.rename(target, old)
        try:
            os.rename(staged, target)
        except OSError:
            with contextlib.suppress(OSError):  # Another writer may have replaced it.
                os.rename(old, target)
            raise
        finally:
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(staged, target)
    sync(target.parent)
