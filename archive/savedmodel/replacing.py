"""A SavedModel at a path that somebody chose: staged beside it, then swapped."""

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
    """A directory to fill, which takes the place of `target` when the block ends well."""
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
    """Raise if there is something at `target` that is no SavedModel."""
    if not os.path.lexists(target):
        return
    is_directory = target.is_dir() and not target.is_symlink()
    if is_directory and (not any(target.iterdir()) or (target / "saved_model.pb").is_file()):
        return
    raise ExportValueError(
        f"Received filepath='{target}', which holds something that is no SavedModel. Expected a "
        "path that does not exist, an empty directory, or a SavedModel to replace."
    )


def _swap(staged: Path, target: Path) -> None:
    """Put `staged` in the place of `target`, if there is one, and delete that."""
    if target.exists():
        old = staged.with_name(f"{staged.name}.old")
        os.rename(target, old)
        try:
            os.rename(staged, target)
        except OSError:
            with contextlib.suppress(OSError):  # Another writer may have been first.
                os.rename(old, target)
            raise
        finally:
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(staged, target)
    sync(target.parent)
