"""Is a version what was published? Its files against its manifest, and that against its digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from ..errors import DamagedVersionError
from .files import FileInfo, digest_of, first_bytes
from .record import MANIFEST, MANIFEST_DIGEST, manifest_digest, read_record
from .remote import VersionPath
from .store import Files, open_store
from .versions import SAVED_MODEL, is_marker

# What a publish writes itself, of which the manifest does not tell the digest.
OWN_FILES = {MANIFEST, MANIFEST_DIGEST}

_EMPTY = FileInfo(0, hashlib.sha256().hexdigest())


def version_problems(version_dir: str | os.PathLike[str]) -> list[str]:
    """How the files of a version, or of a copy of one, differ from what was published."""
    return problems_of(open_store(version_dir))


def problems_of(version: Files) -> list[str]:
    """`version_problems` of a version in a store."""
    try:
        record = read_record(version)
    except FileNotFoundError:
        return [without_manifest(version.root)]
    except DamagedVersionError as error:
        return [str(error)]
    if "files" in record.unread:
        return [
            f"the files of '{version.root}' cannot be verified: a later version of this library "
            f"wrote its manifest (schema {record.schema}). Upgrade keras-export-callbacks"
        ]
    return [*manifest_problems(version), *differences(version, record.files)]


def without_manifest(version_dir: VersionPath) -> str:
    """What is said of a version that has no manifest."""
    return f"'{version_dir}' has no '{MANIFEST}': this library did not write it, or it was lost."


def manifest_problems(version: Files) -> list[str]:
    """What is wrong with a manifest that can be read, by its own digest."""
    try:
        status = version.stat(MANIFEST_DIGEST)
        if status is None:
            return [f"{MANIFEST_DIGEST!r} is missing"]
        if status.size is None:
            return [f"{MANIFEST_DIGEST!r} is not a regular file"]
        expected = manifest_digest(b"".join(version.blocks(MANIFEST)))
        # No more than that: it may be of any size.
        if first_bytes(version.blocks(MANIFEST_DIGEST), len(expected) + 1) == expected:
            return []
    except FileNotFoundError:
        return [f"{MANIFEST_DIGEST!r} is missing"]
    except OSError as error:
        return [f"{MANIFEST_DIGEST!r} cannot be read: {error.strerror or error}"]
    return [f"{MANIFEST!r} or {MANIFEST_DIGEST!r} has other contents than were published"]


def differences(version: Files, expected: Mapping[str, FileInfo]) -> list[str]:
    """How the files of a version differ from those `expected`, but for the manifest."""
    found = set(version.files()) - OWN_FILES
    problems = []
    for name in sorted(found | expected.keys() | {SAVED_MODEL}):
        if name not in found:
            problems.append(f"{name!r} is missing")
        elif name not in expected:
            if not is_marker(name) or _difference(version, name, _EMPTY):
                problems.append(f"{name!r} was added")
        elif problem := _difference(version, name, expected[name]):
            problems.append(f"{name!r} {problem}")
    return problems


def _difference(version: Files, name: str, expected: FileInfo) -> str | None:
    try:
        status = version.stat(name)
        if status is None:
            return "is missing"
        if status.size is None:
            return "is not a regular file"
        if status.size != expected.size:
            return f"has {status.size} bytes, {expected.size} were published"
        if digest_of(version.blocks(name)) != expected.sha256:
            return "has other contents than were published"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None
