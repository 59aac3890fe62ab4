"""Writes, links and finds shards. A shard is one data file of a TensorFlow checkpoint.

TensorFlow can merge shards if each has an index file that describes only this shard. A
version keeps these index files in ``assets.extra/shards``, so that any process can
link its shards.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ..store.files import FileInfo, KeptFile, KnownFile, sync

DIRECTORY = "variables"
INDEXES = "assets.extra/shards"

# The number of bytes after which a shard is flushed while it is written.
_FLUSHED_BYTES = 64 * 2**20

# The number of bytes that are compared at a time. They fit into the caches of a processor.
_COMPARED_BYTES = 2**18


@dataclass(frozen=True)
class Shard:
    """A data file of an earlier export.

    Attributes:
        data: The data file.
        index: The index file that describes only this shard.
        layout: The place of each tensor in the data file, by checkpoint key.
        strings: The value of each string tensor, by checkpoint key. It is kept because
            only TensorFlow knows how strings are stored in the file.
    """

    data: KnownFile
    index: KeptFile
    layout: Mapping[str, Place]
    strings: Mapping[str, Any]

    def unchanged(self, tensors: Mapping[str, tf.Tensor]) -> list[str]:
        """Return the keys of the tensors that are in the file now, with the same bits."""
        if not self.data.is_intact() or not self.data.info.size:
            return []
        keys = [key for key in self.layout if key in tensors]
        try:
            with open(self.data.path, "rb", buffering=0) as stored:
                return [key for key in keys if self._holds(key, tensors, stored)]
        except FileNotFoundError:
            return []

    def link(self, prefix: Path) -> Shard | None:
        """Link the shard to another place. Return None if its file was removed or changed."""
        data = self.data.share(_data(prefix))
        return replace(self, data=data) if data else None

    def moved(self, root: Path, new_root: Path) -> Shard:
        """Return the shard after a directory above it was renamed from `root` to `new_root`."""
        return replace(
            self, data=self.data.moved(root, new_root), index=self.index.moved(root, new_root)
        )

    def _holds(self, key: str, tensors: Mapping[str, tf.Tensor], stored: RawIOBase) -> bool:
        tensor, place = tensors[key], self.layout[key]
        if tensor.dtype != place.dtype or tuple(tensor.shape) != place.shape:
            return False
        if tensor.dtype == tf.string:
            return np.array_equal(tensor.numpy(), self.strings[key])
        stored.seek(place.offset)
        return _are_next_in(stored, _memory(tensor))


@dataclass(frozen=True)
class Place:
    """The place of a tensor in a shard, in bytes. The size of strings is given as 0."""

    offset: int
    size: int
    shape: tuple[int, ...]
    dtype: Any


def write_shard(prefix: Path, tensors: Mapping[str, tf.Tensor]) -> Shard:
    """Write a shard. Meanwhile, another thread flushes it and computes its digest."""
    tensors = dict(sorted(tensors.items()))
    strings = {key: item.numpy() for key, item in tensors.items() if item.dtype == tf.string}
    with _Companion(prefix, [] if strings else list(tensors.values())) as companion:
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )
    data = _data(prefix)
    layout, size = _layout({key: (item.dtype, item.shape) for key, item in tensors.items()})
    # If TensorFlow lays out the file in another way, its digest is computed from the file.
    as_expected = not strings and data.stat().st_size == size
    return Shard(
        data=KnownFile.at(data, companion.sha256 if as_expected else None),
        index=KeptFile.at(_index(prefix)),
        layout=layout,
        strings=strings,
    )


def stored_shards(version_dir: Path, files: Mapping[str, FileInfo]) -> list[Shard]:
    """Return the shards of a published version, which any process may have written.

    Args:
        version_dir: The directory of a version that verifies.
        files: The size and digest of each of its files, by relative path.
    """
    data = sorted(name for name in files if name.startswith(f"{DIRECTORY}/variables.data-"))
    stored = []
    for i, name in enumerate(data):
        if f"{INDEXES}/{i}.index" in files:
            with suppress(OSError, ValueError, tf.errors.OpError):
                stored.append(_stored_shard(version_dir, i, name, files[name]))
    return stored


def _stored_shard(version_dir: Path, number: int, data_name: str, data_info: FileInfo) -> Shard:
    prefix = version_dir / INDEXES / str(number)
    alone = tf.train.load_checkpoint(str(prefix))
    shapes, dtypes = alone.get_variable_to_shape_map(), alone.get_variable_to_dtype_map()
    whole = tf.train.load_checkpoint(str(version_dir / DIRECTORY / "variables"))
    strings = {key: whole.get_tensor(key) for key in shapes if dtypes[key] == tf.string}
    layout, size = _layout({key: (dtypes[key], shapes[key]) for key in sorted(shapes)})
    if not strings and size != data_info.size:
        raise ValueError(f"'{data_name}' does not have the layout of `write_shard`")
    return Shard(
        data=KnownFile.at(version_dir / data_name, data_info.sha256),
        index=KeptFile.at(_index(prefix)),
        layout=layout,
        strings=strings,
    )


def _layout(tensors: Mapping[str, tuple[Any, Sequence[int]]]) -> tuple[dict[str, Place], int]:
    """Return the place of each tensor in a shard, and the size of the shard.

    Numbers are stored one after the other, as in memory
    (``tensorflow/core/util/tensor_bundle/tensor_bundle.h``).
    """
    layout, offset = {}, 0
    for key, (dtype, shape) in tensors.items():
        size = 0 if dtype == tf.string else int(np.prod(shape, dtype=int)) * dtype.size
        layout[key] = Place(offset, size, tuple(shape), dtype)
        offset += size
    return layout, offset


class _Companion(threading.Thread):
    """Computes the SHA-256 digest of tensors, and flushes the file that they are written to.

    Flushing a large file takes as long as writing it, so it is flushed while it is
    written.

    Attributes:
        sha256: The digest in hexadecimal, or None if it could not be computed.
    """

    sha256: str | None = None

    def __init__(self, prefix: Path, tensors: Sequence[tf.Tensor]) -> None:
        super().__init__(name="keras-export-digest")
        self._prefix = prefix
        self._tensors = tensors
        self._is_wanted = True

    def __enter__(self) -> _Companion:
        with suppress(RuntimeError):  # The interpreter is shutting down.
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_wanted = kind is None
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        digest = hashlib.sha256()
        with suppress(Exception):  # The file can be read instead.
            for tensor in self._tensors:
                content = _memory(tensor).data
                for start in range(0, len(content), _FLUSHED_BYTES):
                    if not self._is_wanted:
                        return
                    block = content[start : start + _FLUSHED_BYTES]
                    digest.update(block)
                    if len(block) == _FLUSHED_BYTES:
                        self._flush()
            self.sha256 = digest.hexdigest()

    def _flush(self) -> None:
        # TensorFlow gives the file a longer name until it is complete.
        for path in self._prefix.parent.glob(f"{self._prefix.name}.data-*"):
            with suppress(OSError):  # Publishing flushes again and raises.
                sync(path)


def _data(prefix: Path) -> Path:
    return Path(f"{prefix}.data-00000-of-00001")


def _index(prefix: Path) -> Path:
    return Path(f"{prefix}.index")


def _are_next_in(file: RawIOBase, content: Any) -> bool:
    """Return whether some bytes are the next ones in a file.

    The file is not mapped to memory. If another program truncated it, reading the map would end
    the process.
    """
    block = np.empty(min(_COMPARED_BYTES, len(content)), np.uint8)
    for start in range(0, len(content), _COMPARED_BYTES):
        ours = content[start : start + _COMPARED_BYTES]
        theirs = block[: len(ours)]
        if file.readinto(theirs.data) != len(ours) or not np.array_equal(ours, theirs):
            return False
    return True


def _memory(tensor: tf.Tensor) -> Any:
    """Return the bytes of a tensor. They are not copied if the tensor is in host memory."""
    return np.ascontiguousarray(np.asarray(tensor)).reshape(-1).view(np.uint8)
