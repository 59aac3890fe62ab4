"""Checks of the paths that a user passes, before any work starts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import ExportTypeError, ExportValueError
from .buckets.clients import SCHEMES


def loadable_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a path that TensorFlow can load a SavedModel from.

    Raises:
        ExportTypeError: If `path` is not a string or a path made of one.
        ExportValueError: If TensorFlow cannot load from `path`.
    """
    text = path_text(path)
    if _PATH_OF_URL.match(text):
        raise ExportValueError(
            f"Received {path!r}. Expected the URL of a bucket as a string, such as "
            "'s3://bucket/prefix'. A `Path` drops one of the slashes."
        )
    if not text or "\0" in text:
        raise ExportValueError(
            f"Received {text!r}. Expected the path of a directory, not empty and without "
            "null characters."
        )
    if special := _PATTERN.search(text):
        raise ExportValueError(
            f"Received '{text}'. Expected a path without {special[0]!r}. TensorFlow reads such a "
            "path as a pattern, so it cannot load a SavedModel from there."
        )
    return text


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a local or mounted directory.

    Raises:
        ExportTypeError: If `path` is not a string or a path made of one.
        ExportValueError: If TensorFlow cannot load from `path`, or if `path` is a URL.
    """
    text = loadable_text(path)
    if is_url(text):
        raise ExportValueError(
            f"Received '{text}', which is not on a local file system. Expected a local or "
            "mounted directory, because the directory is written by one rename."
        )
    return Path(os.path.abspath(text))


def path_text(path: object, label: str = "") -> str:
    """Return the text of a path.

    Args:
        path: The path.
        label: The text before the path in the error message, such as ``"log_dir="``.

    Raises:
        ExportTypeError: If `path` is not a string or a path made of one.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ExportTypeError(
            f"Received {label}{path!r} of type {type(path)}. Expected a directory, as a str or "
            "Path."
        )
    return text


def is_url(text: str) -> bool:
    """Return whether a path is a URL, such as ``"s3://bucket/served"``."""
    return _URL.match(text) is not None


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PATH_OF_URL = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)")
_PATTERN = re.compile(r"[*?\[\\]")
