"""Version numbers, as a model server reads them. No files: names in, numbers out.

TensorFlow Serving takes every child of a model's base directory whose name
parses as an int64 for a version, whether file or directory, complete or not
(``tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import ExportError

MAX_VERSION = 2**63 - 1

SAVED_MODEL = "saved_model.pb"
MANIFEST = "assets.extra/export.json"

# Markers in the directory of a version that is copied or removed file by file.
UNFINISHED = ".unfinished-"
REMOVED = ".removed-"

_CANONICAL = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_LENIENT = re.compile(r"\s*\+?0*([0-9]{1,19})\s*", re.ASCII)


def parse(name: str) -> int | None:
    """The version a directory name spells, or None for any other name.

    Args:
        name: a name without its directory, such as ``"7"``.

    Only the canonical spelling counts: ``"007"`` and ``"+7"`` are not ours.
    """
    if not _CANONICAL.fullmatch(name):
        return None
    version = int(name)
    return version if version <= MAX_VERSION else None


def claimed(name: str) -> int | None:
    """The number a lenient parser may read from `name`, or None.

    A server may take ``"007"`` or ``" 8"`` for a version, so the numbers such
    names claim must not be given out again.
    """
    match = _LENIENT.fullmatch(name)
    if not match:
        return None
    version = int(match[1])
    return version if version <= MAX_VERSION else None


def is_version(names: Iterable[str]) -> bool:
    """Whether a directory with these entries is a version that is there to stay."""
    names = set(names)
    if any(name.startswith(REMOVED) for name in names):
        return False
    return SAVED_MODEL in names or (bool(names) and not any(map(is_marker, names)))


def is_marker(name: str) -> bool:
    """Whether a file, by its path in a version's directory, is no part of the version."""
    return "/" not in name and name.startswith((UNFINISHED, REMOVED))


class Numbers:
    """The numbers that one writer gives its versions: each above all that it has seen.

    A directory may be emptied while its writer lives. A server that has loaded
    version 7 keeps it then, and would never load a version 1.
    """

    def __init__(self) -> None:
        # A set, because several threads may add to it at the same time.
        self._seen = {0}

    def see(self, names: Iterable[str]) -> None:
        """Never give out again what any of `names` claims."""
        self._seen.add(max((claimed(name) or 0 for name in names), default=0))

    def next(self, names: Iterable[str]) -> int:
        """One above the highest number seen; 1 if there was none. It is not seen by this.

        Args:
            names: every entry of the base directory now.

        Raises:
            ExportError: the highest int64 is taken, so no higher one exists.
        """
        self.see(names)
        highest = max(self._seen)
        if highest == MAX_VERSION:
            raise ExportError(
                f"The number {MAX_VERSION} is taken in the base directory and no version can be "
                "higher. Rename or remove what bears it: it was not written by this library."
            )
        return highest + 1
