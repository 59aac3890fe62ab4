"""Variables on disk: a TensorFlow checkpoint of which only what changed is written.

A checkpoint may lie in several data files, its shards. A shard all of whose
tensors are bit for bit those of the last export is hard-linked from there; all
others are written. Tensors that change together end up in the same shard: one
that is found half changed is split.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from .files import KnownFile
from .record import FileInfo

DIRECTORY = "variables"

# A shard's unchanged part is worth a shard of its own from this share of it on.
_WORTH_SPLITTING = 0.1


@dataclass(frozen=True)
class _Shard:
    """A data file of an earlier export.

    Attributes:
        data: the file.
        index: the contents of the index file that describes it alone.
        layout: where in it each tensor is, by checkpoint key.
    """

    data: KnownFile
    index: bytes
    layout: Mapping[str, _Place]


@dataclass(frozen=True)
class _Place:
    offset: int
    size: int
    shape: tuple[int, ...]
    dtype: Any


class BundleWriter:
    """Writes one checkpoint after another, linking what did not change."""

    def __init__(self) -> None:
        self._shards: list[_Shard] = []
        self._strings: dict[str, Any] = {}

    def write(self, directory: Path, tensors: Mapping[str, tf.Tensor]) -> dict[str, FileInfo]:
        """Write `tensors` by checkpoint key into ``directory/variables``.

        Returns:
            Size and digest of each file, by path relative to `directory`.
        """
        target = directory / DIRECTORY
        target.mkdir()
        parts = target / "parts"
        parts.mkdir()
        kept, groups = self._plan(tensors)
        shards = [_link(shard, parts / str(i)) for i, shard in enumerate(kept)]
        for group in groups:
            shards.append(_write(parts / str(len(shards)), {key: tensors[key] for key in group}))
        tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=[str(parts / str(i)) for i in range(len(shards))],
            destination_prefix=str(target / "variables"),
            delete_old_dirs=False,
        )
        shutil.rmtree(parts)
        names = [f"variables.data-{i:05d}-of-{len(shards):05d}" for i in range(len(shards))]
        self._shards = [
            replace(shard, data=replace(shard.data, path=target / name))
            for shard, name in zip(shards, names, strict=True)
        ]
        self._strings = {
            key: tensor.numpy() for key, tensor in tensors.items() if tensor.dtype == tf.string
        }
        files = [*(shard.data for shard in self._shards), KnownFile.at(target / "variables.index")]
        return {f"{DIRECTORY}/{file.path.name}": file.info for file in files}

    def moved(self, directory: Path) -> None:
        """The last export was renamed to `directory`: link from there from now on."""
        self._shards = [
            replace(shard, data=shard.data.under(directory / DIRECTORY)) for shard in self._shards
        ]

    def _plan(self, tensors: Mapping[str, tf.Tensor]) -> tuple[list[_Shard], list[list[str]]]:
        """Which shards to link, and the keys of each shard to write."""
        kept: list[_Shard] = []
        groups: list[list[str]] = []
        pending = dict.fromkeys(tensors)
        for shard in self._shards:
            same = self._unchanged(shard, tensors)
            share = sum(shard.layout[key].size for key in same) / max(shard.data.info.size, 1)
            if len(same) == len(shard.layout):
                kept.append(shard)
            elif share >= _WORTH_SPLITTING:
                groups.append(same)
            else:
                continue
            for key in same:
                del pending[key]
        # The digest of numbers is taken from memory; strings are encoded on disk.
        strings = [key for key in pending if tensors[key].dtype == tf.string]
        numbers = [key for key in pending if tensors[key].dtype != tf.string]
        return kept, [group for group in [*groups, numbers, strings] if group]

    def _unchanged(self, shard: _Shard, tensors: Mapping[str, tf.Tensor]) -> list[str]:
        """The keys whose tensors are bit for bit what the shard's file holds now."""
        if not shard.data.is_intact() or not shard.data.info.size:
            return []
        stored = np.memmap(shard.data.path, np.uint8, mode="r")
        return [
            key
            for key, place in shard.layout.items()
            if key in tensors and self._same(key, tensors[key], place, stored)
        ]

    def _same(self, key: str, tensor: tf.Tensor, place: _Place, stored: Any) -> bool:
        if tensor.dtype != place.dtype or tuple(tensor.shape) != place.shape:
            return False
        if tensor.dtype == tf.string:
            return key in self._strings and np.array_equal(tensor.numpy(), self._strings[key])
        ours = _memory(tensor)
        theirs = stored[place.offset : place.offset + place.size]
        # What changed nearly always differs at once; do not read all of it for that.
        head = slice(0, 4096)
        return np.array_equal(ours[head], theirs[head]) and np.array_equal(ours, theirs)


def _write(prefix: Path, tensors: Mapping[str, tf.Tensor]) -> _Shard:
    """Write a shard of its own; its digest is taken while it is written."""
    numeric = all(tensor.dtype != tf.string for tensor in tensors.values())
    digest = _Digest(list(tensors.values()) if numeric else [])
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
    data = _data(prefix)
    layout, size = _layout(tensors)
    # Should TensorFlow ever lay numbers out in another way, the file is what counts.
    as_expected = numeric and data.stat().st_size == size
    return _Shard(
        data=KnownFile.at(data, digest.result() if as_expected else None),
        index=Path(f"{prefix}.index").read_bytes(),
        layout=layout,
    )


def _link(shard: _Shard, prefix: Path) -> _Shard:
    Path(f"{prefix}.index").write_bytes(shard.index)
    return replace(shard, data=shard.data.share(_data(prefix)))


def _data(prefix: Path) -> Path:
    return Path(f"{prefix}.data-00000-of-00001")


def _layout(tensors: Mapping[str, tf.Tensor]) -> tuple[dict[str, _Place], int]:
    """Where each tensor will be: numbers lie one after the other, as they are in memory
    (``tensorflow/core/util/tensor_bundle/tensor_bundle.h``)."""
    layout, offset = {}, 0
    for key, tensor in tensors.items():
        size = 0 if tensor.dtype == tf.string else _memory(tensor).size
        layout[key] = _Place(offset, size, tuple(tensor.shape), tensor.dtype)
        offset += size
    return layout, offset


class _Digest(threading.Thread):
    """Takes the SHA-256 digest of tensors, beside what the starting thread does."""

    def __init__(self, tensors: Sequence[tf.Tensor]) -> None:
        super().__init__(name="keras-export-digest")
        self._tensors = tensors
        self._digest = hashlib.sha256()
        self._concurrent = True
        try:
            self.start()
        except RuntimeError:  # The interpreter is ending and starts no more threads.
            self._concurrent = False

    def run(self) -> None:
        for tensor in self._tensors:
            self._digest.update(_memory(tensor).data)

    def result(self) -> str:
        """Wait for the digest, hexadecimal."""
        if self._concurrent:
            self.join()
        else:
            self.run()
        return self._digest.hexdigest()


def _memory(tensor: tf.Tensor) -> Any:
    """The bytes of a tensor, shared with it where it is in host memory."""
    return np.ascontiguousarray(np.asarray(tensor)).reshape(-1).view(np.uint8)
