"""Writes variables as a TensorFlow checkpoint. Unchanged shards are linked.

A checkpoint can lie in several data files, its shards. If all tensors of an earlier
shard are unchanged, bit for bit, then the shard is hard-linked. All other
tensors are written. A shard is split if only a part of it has changed, so tensors that
change together end up in the same shard.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tensorflow as tf

from ..store.files import FileInfo, KnownFile, link_or_copy
from .shards import DIRECTORY, INDEXES, Shard, write_shard

# A part is worth a shard of its own if it is at least this share of the whole.
_WORTH_SPLITTING = 0.1


@dataclass(frozen=True)
class Bundle:
    """A checkpoint that was written.

    Attributes:
        shards: The data files.
        files: The size and digest of each file, by path relative to the version.
    """

    shards: Sequence[Shard]
    files: dict[str, FileInfo]


def write_bundle(
    directory: Path,
    tensors: Mapping[str, tf.Tensor],
    steady: Collection[str],
    earlier: Sequence[Shard],
) -> Bundle:
    """Write tensors into ``directory/variables``.

    Args:
        directory: The directory of the new version.
        tensors: The tensors to write, by checkpoint key.
        steady: The checkpoint keys of tensors that are unlikely to change. If these
            tensors are large, they get a shard of their own. If they do change, that
            shard is written again.
        earlier: The shards of an earlier export. Unchanged shards are linked.
    """
    target, indexes = directory / DIRECTORY, directory / INDEXES
    parts = target / "parts"
    parts.mkdir(parents=True)
    shards, groups = _link(earlier, parts, tensors, steady)
    for group in groups:
        part = parts / str(len(shards))
        shards.append(write_shard(part, {key: tensors[key] for key in group}))
    shards = [
        replace(shard, index=shard.index.put(indexes / f"{i}.index"))
        for i, shard in enumerate(shards)
    ]
    shards = _join(shards, directory)
    written = [KnownFile.at(target / "variables.index"), *(shard.data for shard in shards)]
    return Bundle(
        shards,
        {f"{DIRECTORY}/{file.path.name}": file.info for file in written}
        | {f"{INDEXES}/{i}.index": shard.index.known.info for i, shard in enumerate(shards)},
    )


def _link(
    earlier: Sequence[Shard],
    parts: Path,
    tensors: Mapping[str, tf.Tensor],
    steady: Collection[str],
) -> tuple[list[Shard], list[list[str]]]:
    """Link the unchanged shards.

    Returns:
        The linked shards, and the checkpoint keys of each shard to write.
    """
    linked: list[Shard] = []
    groups: list[list[str]] = []
    pending = dict.fromkeys(tensors)
    for shard in earlier:
        same = [key for key in shard.unchanged(tensors) if key in pending]
        share = sum(shard.layout[key].size for key in same) / max(shard.data.info.size, 1)
        is_whole = len(same) == len(shard.layout)
        if is_whole and (link := shard.link(parts / str(len(linked)))):
            linked.append(link)
        elif share >= _WORTH_SPLITTING:
            groups.append(same)
        else:
            continue
        for key in same:
            del pending[key]
    # Strings are encoded on disk, but numbers are stored as in memory. Thus they are kept apart.
    strings = [key for key in pending if tensors[key].dtype == tf.string]
    numbers = [key for key in pending if tensors[key].dtype != tf.string]
    groups += _apart(numbers, {key for key in numbers if key in steady}, tensors)
    return linked, [group for group in [*groups, strings] if group]


def _apart(
    keys: list[str], steady: Collection[str], tensors: Mapping[str, tf.Tensor]
) -> list[list[str]]:
    """Return the keys in one group, or in two if the steady ones are worth their own shard."""
    sizes = {key: tensors[key].dtype.size * tensors[key].shape.num_elements() for key in keys}
    if sum(sizes[key] for key in steady) < _WORTH_SPLITTING * sum(sizes.values()):
        return [keys]
    return [[key for key in keys if key in steady], [key for key in keys if key not in steady]]


def _join(shards: list[Shard], directory: Path) -> list[Shard]:
    """Merge the shards in ``variables/parts`` into one checkpoint, in their order."""
    target = directory / DIRECTORY
    parts = [target / "parts" / str(i) for i in range(len(shards))]
    for part in parts:
        index = Path(f"{part}.index")
        if not index.exists():
            link_or_copy(directory / INDEXES / index.name, index)
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(part) for part in parts],
        destination_prefix=str(target / "variables"),
        delete_old_dirs=False,
    )
    shutil.rmtree(target / "parts")
    names = [f"variables.data-{i:05d}-of-{len(shards):05d}" for i in range(len(shards))]
    return [
        replace(shard, data=replace(shard.data, path=target / name))
        for shard, name in zip(shards, names, strict=True)
    ]
