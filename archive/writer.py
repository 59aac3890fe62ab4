"""Writes a snapshot as a SavedModel, and tells what the next export can reuse of it.

`Reuse` and `Written` are immutable values. The next export may reuse a directory only
after it was published. The caller keeps the `Reuse` only then, so nothing has to
be undone if publishing fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tensorflow as tf

from ._tensorflow import OBJECT_GRAPH_KEY, fingerprint_for
from .graph.plan import Snapshot
from .graph.registration import VARIABLE_LISTS
from .graph.servable import FINGERPRINT, SavedGraph
from .savedmodel.bundles import write_bundle
from .savedmodel.shards import DIRECTORY, Shard, stored_shards
from .store.files import FileInfo, KeptFile, KnownFile
from .store.record import EndpointInfo, ExportRecord


@dataclass(frozen=True)
class Reuse:
    """The files that an export can link from an earlier one.

    Attributes:
        graph: The saved graph of the earlier export, or None. `graph_files` are reused
            only for the same graph.
        graph_files: The files of that graph, by relative path.
        shards: The data files that hold the variables of the earlier export.
    """

    graph: SavedGraph | None = None
    graph_files: Mapping[str, KeptFile] = field(default_factory=dict)
    shards: Sequence[Shard] = ()

    def has_variables(self) -> bool:
        """Return whether at least one shard is still intact, so that it can be linked."""
        return any(shard.data.is_intact() for shard in self.shards)

    def with_variables_of(self, record: ExportRecord | None) -> Reuse:
        """Return the same graph with the shards of a published version.

        Args:
            record: The record of a version that verifies. Any process may have written
                it. With None, the result has no shards.
        """
        shards = stored_shards(Path(record.path), record.files) if record else ()
        return replace(self, shards=shards)


@dataclass(frozen=True)
class Written:
    """A SavedModel that was written.

    Attributes:
        files: The size and digest of each file, by relative path.
        endpoints: The signatures, by name.
        collections: The number of variables in each collection, by name.
        graph_reused: Whether the graph was already saved by an earlier export.
        staged: The directory that the SavedModel was written to.
        reusable: What the next export can reuse, as long as the directory is `staged`.
    """

    files: Mapping[str, FileInfo]
    endpoints: Mapping[str, EndpointInfo]
    collections: Mapping[str, int]
    graph_reused: bool
    staged: Path
    reusable: Reuse

    def can_share_variables(self) -> bool:
        """Return whether the next export may link a part of the variables.

        Variables that are unlikely to change have a shard of their own, beside another one.
        Strings always have one.
        """
        return sum(not shard.strings for shard in self.reusable.shards) > 1

    def at(self, published: Path) -> Reuse:
        """Return what the next export can reuse after `staged` was renamed to `published`."""
        staged, reuse = self.staged, self.reusable
        return Reuse(
            reuse.graph,
            {name: file.moved(staged, published) for name, file in reuse.graph_files.items()},
            [shard.moved(staged, published) for shard in reuse.shards],
        )


def write(snapshot: Snapshot, directory: Path, reuse: Reuse) -> Written:
    """Write a completed snapshot as a SavedModel into an empty directory.

    This may run on any thread. Snapshots of the same plan must be written one at a time.

    Args:
        snapshot: The snapshot to write. `Snapshot.completed` must have returned it.
        directory: The empty directory to write to.
        reuse: What can be linked from an earlier export, so that it need not be written.
    """
    plan = snapshot.plan
    saved, is_reused = plan.saved, plan.saved is not None
    if saved is None:
        # Saving takes seconds. Trace first, so that snapshots are read fast meanwhile.
        plan.measured.trace()
        plan.progress.trace()
        saved = plan.saved = plan.graph.save(directory)
        graph_files = saved.files
    else:
        earlier = reuse.graph_files if reuse.graph is saved else saved.files
        graph_files = {name: file.put(directory / name) for name, file in earlier.items()}
    (directory / "assets").mkdir(exist_ok=True)
    assert snapshot.progress is not None
    tensors = {
        **dict(zip(saved.measured_keys, snapshot.measured.tensors(), strict=True)),
        **dict(zip(saved.progress_keys, snapshot.progress.tensors(), strict=True)),
        OBJECT_GRAPH_KEY: tf.constant(saved.object_graph),
    }
    bundle = write_bundle(directory, tensors, saved.steady, reuse.shards)
    files = bundle.files | {name: file.known.info for name, file in graph_files.items()}
    files[FINGERPRINT] = _write_fingerprint(saved.fingerprint, directory)
    lists = plan.graph.lists
    return Written(
        files=files,
        endpoints=saved.endpoints,
        collections={name: len(lists[name]) for name in lists if name not in VARIABLE_LISTS},
        graph_reused=is_reused,
        staged=directory,
        reusable=Reuse(saved, graph_files, bundle.shards),
    )


def _write_fingerprint(content: bytes, directory: Path) -> FileInfo:
    index = (directory / DIRECTORY / "variables.index").read_bytes()
    path = directory / FINGERPRINT
    path.write_bytes(fingerprint_for(content, index))
    return KnownFile.at(path).info
