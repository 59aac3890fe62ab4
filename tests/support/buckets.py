"""What tests of buckets look at, and what they do there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from keras_export_callbacks import ExportDirectory, ExportError
from keras_export_callbacks.archive.store.buckets import claims
from keras_export_callbacks.archive.store.buckets.objects import bucket_at
from keras_export_callbacks.archive.store.store import open_store

from .places import patched


def sweep(url: str) -> None:
    """Take every writer for dead, and sweep up what it left."""
    with patched(claims, LEASE=-1.0, STAGING_LEASE=-1.0):
        open_store(url).sweep()


def left(url: str) -> list[str]:
    """What lies there beside versions, and marks of numbers that were given out."""
    found, key = bucket_at(url)
    versions = {str(version) for version in ExportDirectory(url).versions()}
    return [
        entry.key
        for entry in found.below(key)
        if entry.key.removeprefix(f"{key}/").partition("/")[0] not in versions
        and not (f"/{claims.CLAIMS}/" in entry.key and entry.size <= 1)
        and f"/{claims.REMOVALS}/" not in entry.key
    ]


def told(act: Callable[[], object]) -> str:
    """The error, which is one line, and not a long one."""
    with pytest.raises(ExportError) as raised:
        act()
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 600
    return text
