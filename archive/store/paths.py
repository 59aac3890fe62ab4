"""The text of a path, as a user may write it: checked before any work starts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import ExportTypeError, ExportValueError


def loadable_text(path: str | os.PathLike[str]) -> str:
    """The text of a path that TensorFlow can load a SavedModel from.

    Raises:
        ExportError: it is no path, or TensorFlow cannot load from it.
    """
    text = path_text(path)
    if not text or "\0" in text:
        raise ExportValueError(f"Received {text!r}. Expected the name of a directory.")
    if special := _PATTERN.search(text):
        raise ExportValueError(
            f"Received '{text}'. Expected a path without {special[0]!r}: TensorFlow takes such a "
            "path for a pattern, and cannot load a SavedModel from there."
        )
    return text


def local_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a local or mounted directory.

    Raises:
        ExportError: as `loadable_text`, or it is a URL.
    """
    text = loadable_text(path)
    if is_url(text):
        raise ExportValueError(
            f"Received '{text}', which is not on a local file system. Expected a local or "
            "mounted directory, which can be replaced as a whole by one rename."
        )
    return Path(os.path.abspath(text))


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
