"""Verify that a version is still what was published.

The files are compared with the manifest, and the manifest with its digest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from ..errors import DamagedVersionError
from .files import FileInfo, Progress, counted, digest_of, first_bytes, no_progress
from .record import MANIFEST, MANIFEST_DIGEST, ExportRecord, manifest_digest, read_record
from .remote import VersionPath
from .store import Files, open_store
from .versions import SAVED_MODEL, is_marker

# The manifest has no digests of these files, because `publish_record` writes them last.
OWN_FILES = {MANIFEST, MANIFEST_DIGEST}

_MISSING = "is missing"
_EMPTY = FileInfo(0, hashlib.sha256().hexdigest())


def version_problems(version_dir: str | os.PathLike[str]) -> list[str]:
    """Return how the files of a version differ from what was published.

    Args:
        version_dir: The directory of a version, or of a copy of one.

    Returns:
        One text per problem, without a full stop. The list is empty if the version verifies.
    """
    return problems_of(open_store(version_dir))


def problems_of(version: Files, progress: Progress = no_progress) -> list[str]:
    """Return the problems of a version in a store, as `version_problems` does."""
    try:
        record = read_record(version)
    except FileNotFoundError:
        return [without_manifest(version.root).removesuffix(".")]
    except DamagedVersionError as error:
        return [str(error).removesuffix(".")]
    if "files" in record.unread:
        return [unverifiable(record)]
    return [*manifest_problems(version), *differences(version, record.files, progress)]


def without_manifest(version_dir: VersionPath) -> str:
    """Return the message about a version that has no manifest."""
    return (
        f"'{version_dir}' has no '{MANIFEST}'. Another program wrote this version, or the "
        "manifest was lost."
    )


def unverifiable(record: ExportRecord) -> str:
    """Return the message about a version whose manifest has an unreadable list of files."""
    return (
        f"the files of '{record.path}' cannot be verified: a later version of this library wrote "
        f"its manifest (schema {record.schema}). Upgrade keras-export-callbacks"
    )


def manifest_problems(version: Files) -> list[str]:
    """Return how a readable manifest differs from its digest, as one text per problem."""
    try:
        status = version.stat(MANIFEST_DIGEST)
        if status is None:
            return [f"{MANIFEST_DIGEST!r} is missing"]
        if status.size is None:
            return [f"{MANIFEST_DIGEST!r} is not a regular file"]
        expected = manifest_digest(b"".join(version.blocks(MANIFEST)))
        # The file may have any size, so only the first bytes are read.
        if first_bytes(version.blocks(MANIFEST_DIGEST), len(expected) + 1) == expected:
            return []
    except FileNotFoundError:
        return [f"{MANIFEST_DIGEST!r} is missing"]
    except OSError as error:
        return [f"{MANIFEST_DIGEST!r} cannot be read: {error.strerror or error}"]
    return [f"{MANIFEST!r} or {MANIFEST_DIGEST!r} has other contents than were published"]


def differences(
    version: Files, expected: Mapping[str, FileInfo], progress: Progress = no_progress
) -> list[str]:
    """Return how the files of a version differ from the expected ones.

    The manifest and the file with its digest are not compared.

    Args:
        version: The files of the version.
        expected: The size and the digest of each file, by relative path.
        progress: A function that is called with the size of each block, in bytes.

    Returns:
        One text per problem.
    """
    found = set(version.files()) - OWN_FILES
    problems = []
    for name in sorted(found | expected.keys() | {SAVED_MODEL}):
        if name not in found:
            problems.append(f"{name!r} is missing")
        elif name not in expected:
            # The writer of a marker may remove it at any time.
            is_nothing = is_marker(name) and _difference(version, name, _EMPTY, progress) in (
                None,
                _MISSING,
            )
            if not is_nothing:
                problems.append(f"{name!r} was added")
        elif problem := _difference(version, name, expected[name], progress):
            problems.append(f"{name!r} {problem}")
    return problems


def _difference(version: Files, name: str, expected: FileInfo, progress: Progress) -> str | None:
    try:
        status = version.stat(name)
        if status is None:
            return _MISSING
        if status.size is None:
            return "is not a regular file"
        if status.size != expected.size:
            return f"has {status.size} bytes, {expected.size} were published"
        if digest_of(counted(version.blocks(name), progress)) != expected.sha256:
            return "has other contents than were published"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None
