"""Version numbers, and the names of the directories and files of a version.

The functions here take names and read no files. TensorFlow Serving treats an entry of the
base directory as a version if its name parses as an int64. It does not check whether the
entry is a directory or whether it is complete
(``tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import ExportError

MAX_VERSION = 2**63 - 1

SAVED_MODEL = "saved_model.pb"
MANIFEST = "assets.extra/export.json"

# Prefixes of marker files. A marker is in the directory of a version while the version is copied
# or removed file by file.
UNFINISHED = ".unfinished-"
REMOVED = ".removed-"

_CANONICAL = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_LENIENT = re.compile(r"\s*\+?0*([0-9]{1,19})\s*", re.ASCII)


def parse(name: str) -> int | None:
    """Return the version number that a name spells, or None for any other name.

    Only the canonical spelling counts. This library never writes ``"007"`` or ``"+7"``.

    Args:
        name: The name of an entry of the base directory, such as ``"7"``.
    """
    if not _CANONICAL.fullmatch(name):
        return None
    version = int(name)
    return version if version <= MAX_VERSION else None


def claimed(name: str) -> int | None:
    """Return the number that a lenient parser may read from a name, or None.

    A server may read ``"007"`` or ``" 8"`` as version 7 or 8, so a new version must not
    get such a number.
    """
    match = _LENIENT.fullmatch(name)
    if not match:
        return None
    version = int(match[1])
    return version if version <= MAX_VERSION else None


def counted_as_version(received: str, base_dir: object, name: str) -> str:
    """Return the message about a path in which a name would count as a version.

    Args:
        received: The argument and the path, such as ``"base_dir='served/7'"``.
        base_dir: The directory that holds versions.
        name: The name of an entry of `base_dir` that is a number, such as ``"7"``.
    """
    return (
        f"Received {received}, but '{base_dir}' holds versions, so a server would take {name!r} "
        f"for a version in it. Expected '{base_dir}' itself, or a directory whose name is not a "
        f"number, such as '{base_dir}/model-{name.strip()}'."
    )


def is_version(names: Iterable[str]) -> bool:
    """Return whether a directory with these entries is a published version.

    A version that is still being copied, or that is being removed, does not count.
    """
    names = set(names)
    if any(name.startswith(REMOVED) for name in names):
        return False
    return SAVED_MODEL in names or (bool(names) and not any(map(is_marker, names)))


def is_marker(name: str) -> bool:
    """Return whether a file is a marker, which is not part of the version.

    Args:
        name: The path of the file, relative to the version's directory.
    """
    return "/" not in name and name.startswith((UNFINISHED, REMOVED))


class Numbers:
    """The numbers that one writer gives its versions. Each is above all that it has seen.

    A user may empty the base directory while its writer runs. A server that has loaded
    version 7 then keeps it, and would never load a version 1.
    """

    def __init__(self) -> None:
        # A set, because several threads may add numbers at the same time.
        self._seen = {0}

    def see(self, names: Iterable[str]) -> None:
        """Note the numbers that `names` claim, so that `next` returns a higher one."""
        self._seen.add(max((claimed(name) or 0 for name in names), default=0))

    def next(self, names: Iterable[str]) -> int:
        """Return the number above the highest one seen, or 1 if no number was seen.

        The returned number does not count as seen, so two calls may return the same one.

        Args:
            names: All entries that the base directory has now.

        Raises:
            ExportError: If the highest int64 is taken, so that no higher number exists.
        """
        self.see(names)
        highest = max(self._seen)
        if highest == MAX_VERSION:
            raise ExportError(
                f"The number {MAX_VERSION} is taken in the base directory, and no version can be "
                "higher. Rename or remove the entry with this number. This library did not write "
                "it."
            )
        return highest + 1
