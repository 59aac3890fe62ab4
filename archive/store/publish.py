"""A staged version and its record → a published version with its manifest."""

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
    """Publish a staged version with its manifest; return the record as published.

    The version number and time are only known inside the commit, so the
    manifest is written there, last of all files.

    Args:
        staged: the complete version but for its manifest.
        record: what to write in it.
        store: where the version appears.
        snapshot_time: when the snapshot ended, by `time.perf_counter`, for
            `write_seconds`; None leaves that as it is.
        check: called inside the commit, when no other writer can publish. If it
            raises, nothing is published.
    """

    def finish(version: int) -> None:
        nonlocal record
        check()
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = replace(record, version=version, created=created)
        if snapshot_time is not None:
            record = replace(record, write_seconds=time.perf_counter() - snapshot_time)
        content = record.to_json().encode("utf-8")
        # Read back, so that nothing is published that no one could read.
        record = parse_record(content, store.root / str(version))
        manifest, digest = staged / MANIFEST, staged / MANIFEST_DIGEST
        manifest.parent.mkdir(exist_ok=True)
        manifest.write_bytes(content)
        digest.write_bytes(manifest_digest(content))
        for path in (manifest, digest, manifest.parent, staged):
            sync(path)

    store.commit(staged, finish, record.files)
    return record
