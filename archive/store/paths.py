"""What a user may name as a directory: checked before any work starts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import ExportTypeError, ExportValueError, VersionNotFoundError
from .publish import STAGING
from .remote import RemotePath, VersionPath
from .versions import parse


def absolute_path(path: str | os.PathLike[str]) -> VersionPath:
    """`path` as one that is the same wherever the process goes while it trains.

    Raises:
        ExportError: it is no path, or one that TensorFlow cannot load from.
    """
    text = path_text(path)
    if not text or "\0" in text:
        raise ExportValueError(f"Received {text!r}. Expected the name of a directory.")
    if special := _PATTERN.search(text):
        raise ExportValueError(
            f"Received '{text}'. Expected a path without {special[0]!r}: TensorFlow takes such a "
            "path for a pattern, and cannot load a SavedModel from there."
        )
    return RemotePath(text) if is_url(text) else Path(os.path.abspath(text))


def local_path(path: str | os.PathLike[str]) -> Path:
    """`absolute_path`, of a local or mounted directory.

    Raises:
        ExportError: as `absolute_path`, or it is a URL.
    """
    absolute = absolute_path(path)
    if isinstance(absolute, RemotePath):
        raise ExportValueError(
            f"Received '{absolute}', which is not on a local file system. Expected a local or "
            "mounted directory, which can be replaced as a whole by one rename."
        )
    return absolute


def version_path(path: str | os.PathLike[str], label: str = "") -> tuple[VersionPath, int]:
    """The absolute path of a version's directory, and its number.

    `label` goes before the path in the error.

    Raises:
        ExportError: as `absolute_path`, or it is not named as a version is.
    """
    absolute = absolute_path(path)
    version = parse(absolute.name)
    if version is None:
        raise VersionNotFoundError(
            f"Received {label}'{absolute}'. Expected the directory of a version, whose name is its "
            "number, such as 'trials/trial_0/7'."
        )
    return absolute, version


def path_text(path: object, label: str = "") -> str:
    """The text of a path; `label` goes before it in the error.

    Raises:
        ExportTypeError: it is neither a str nor a path made of one.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ExportTypeError(
            f"Received {label}{path!r} of type {type(path)}. Expected a directory, as a str or "
            "Path."
        )
    return text


def is_url(text: str) -> bool:
    """Whether a path names a place that is not in the local file system."""
    return _URL.match(text) is not None


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PATTERN = re.compile(r"[*?\[\\]")


def check_base_dir(base_dir: VersionPath, argument: str = "base_dir") -> None:
    """Raise unless `base_dir` is, or can become, a directory we can write to."""
    if isinstance(base_dir, RemotePath):
        _check_remote(base_dir, argument)
    else:
        _check_local(base_dir, argument)


def _check_remote(base_dir: RemotePath, argument: str) -> None:
    try:
        base_dir.mkdir()
    except OSError as error:
        raise ExportValueError(
            f"Received {argument}='{base_dir}', where TensorFlow cannot write: {error}. Expected "
            "a URL that `tf.io.gfile` can write to, or a local directory."
        ) from error


def _check_local(base_dir: Path, argument: str) -> None:
    existing = base_dir
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not os.path.isdir(existing):
        raise ExportValueError(
            f"Received {argument}='{base_dir}', but '{existing}' is not a directory. "
            "Expected a directory, existing or to be made."
        )
    inside = next((path for path in [base_dir, *base_dir.parents] if _is_ours(path)), None)
    if inside is not None:
        raise ExportValueError(
            f"Received {argument}='{base_dir}', but '{inside}' is a SavedModel or unpublished "
            "work, to which nothing may be added. Expected a directory outside of it."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ExportValueError(
            f"Received {argument}='{base_dir}', but '{existing}' is not writable by this process. "
            "Expected a directory that can be written to."
        )
    longest = os.pathconf(existing, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in base_dir.parts):
        raise ExportValueError(
            f"Received {argument}='{base_dir}'. Expected names of at most {longest} bytes."
        )


def _is_ours(path: Path) -> bool:
    """Whether nobody but a writer of versions may change what is in a directory."""
    return path.name == STAGING or os.path.lexists(path / "saved_model.pb")
