"""Find base directories below a directory, for messages about a directory without versions."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from ..errors import ExportError
from .remote import VersionPath
from .store import Store, open_store
from .versions import parse

# How many levels below the directory are searched, and how many directories. In a bucket, each
# directory takes a request or two.
_DEPTH = 3
_MOST, _MOST_IN_BUCKET = 1000, 50

# How many base directories the message names.
_NAMED = 3


def no_versions(store: Store) -> str:
    """Return the message about a directory without versions. It names base directories below."""
    return f"There are no versions in '{store.root}'.{versions_below(store)}"


def versions_below(store: Store) -> str:
    """Return a sentence that names base directories below, or an empty text if there are none.

    The sentence begins with a space.
    """
    left = iter(range(_MOST if store.can_link else _MOST_IN_BUCKET))
    below = list(itertools.islice(_bases_below(store, _DEPTH, left), _NAMED + 1))
    if not below:
        return ""
    listed = ", ".join(f"'{path}'" for path in below[:_NAMED])
    return f" There are versions in {listed}{', …' if len(below) > _NAMED else ''}."


def _bases_below(store: Store, depth: int, left: Iterator[int]) -> Iterator[VersionPath]:
    for name in _names(store):
        if parse(name) is not None or name.startswith("."):
            continue
        if next(left, None) is None:
            return
        with contextlib.suppress(ExportError, OSError):
            below = open_store(store.root / name)
            if _holds_versions(below):
                yield below.root
            elif depth > 1:
                yield from _bases_below(below, depth - 1, left)


def _holds_versions(store: Store) -> bool:
    # `store.versions` would list every file below a directory in a bucket.
    return any(store.has(version) for version in map(parse, _names(store)) if version is not None)


def _names(store: Store) -> list[str]:
    try:
        return sorted(store.names())
    except OSError:
        return []  # It is a file, or it cannot be read.
