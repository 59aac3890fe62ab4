"""Publish a staged version together with its manifest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from .files import sync
from .record import MANIFEST, MANIFEST_DIGEST, ExportRecord, manifest_digest, parse_record
from .store import Store


def publish_record(
    staged: Path,
    record: ExportRecord,
    store: Store,
    snapshot_time: float | None = None,
    check: Callable[[], None] = lambda: None,
) -> ExportRecord:
    """Publish a staged version with its manifest, and return the published record.

    The version's number and time are known only during the commit, so the manifest is
    written then, after all other files.

    Args:
        staged: The directory of the version, complete except for the manifest.
        record: The record to write into the manifest. The commit fills in `version`,
            `created` and, with `snapshot_time`, `write_seconds`.
        store: The store to publish in.
        snapshot_time: When the snapshot ended, in seconds of `time.perf_counter`. With
            None, `write_seconds` stays unchanged.
        check: Function that is called during the commit, while no other writer can publish
            the same number. If it raises, nothing is published.

    Returns:
        The record as it was published.
    """

    def finish(version: int) -> None:
        nonlocal record
        check()
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = replace(record, version=version, created=created)
        if snapshot_time is not None:
            record = replace(record, write_seconds=time.perf_counter() - snapshot_time)
        content = record.to_json().encode("utf-8")
        # A manifest that cannot be read must not be published, so it is read back first.
        record = parse_record(content, store.root / str(version))
        manifest, digest = staged / MANIFEST, staged / MANIFEST_DIGEST
        manifest.parent.mkdir(exist_ok=True)
        manifest.write_bytes(content)
        digest.write_bytes(manifest_digest(content))
        for path in (manifest, digest, manifest.parent, staged):
            sync(path)

    store.commit(staged, finish, record.files)
    return record
