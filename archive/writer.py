"""A snapshot → a SavedModel in a directory, and what the next export can reuse of it.

Both are values. What was written may be reused only once its directory was
published; until then nobody keeps it, and there is nothing to take back.
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
    """What an export can link from an earlier one.

    Attributes:
        graph: what the earlier one had saved; its files are only those of the same graph.
        graph_files: the files of that graph, by relative path.
        shards: its variables.
    """

    graph: SavedGraph | None = None
    graph_files: Mapping[str, KeptFile] = field(default_factory=dict)
    shards: Sequence[Shard] = ()

    def has_variables(self) -> bool:
        """Whether some of the variables are still there to be linked."""
        return any(shard.data.is_intact() for shard in self.shards)

    def with_variables_of(self, record: ExportRecord | None) -> Reuse:
        """The same with the variables of a version that verifies, whoever wrote it, if any."""
        shards = stored_shards(Path(record.path), record.files) if record else ()
        return replace(self, shards=shards)


@dataclass(frozen=True)
class Written:
    """A SavedModel as it was written.

    Attributes:
        files: size and digest of each file, by relative path.
        endpoints: its signatures by name.
        collections: number of variables in each collection, by name.
        graph_reused: whether only the variables had to be written.
        staged: the directory that it was written to.
        reusable: what the next export could reuse from there.
    """

    files: Mapping[str, FileInfo]
    endpoints: Mapping[str, EndpointInfo]
    collections: Mapping[str, int]
    graph_reused: bool
    staged: Path
    reusable: Reuse

    def at(self, published: Path) -> Reuse:
        """What the next export can reuse, once this one was renamed to `published`."""
        staged, reuse = self.staged, self.reusable
        return Reuse(
            reuse.graph,
            {name: file.moved(staged, published) for name, file in reuse.graph_files.items()},
            [shard.moved(staged, published) for shard in reuse.shards],
        )


def write(snapshot: Snapshot, directory: Path, reuse: Reuse) -> Written:
    """Write a `completed` snapshot as a SavedModel into an empty directory; on any thread.

    Snapshots of one plan are written one at a time.

    Args:
        snapshot: what to write.
        directory: where to.
        reuse: what may be linked instead of being written.
    """
    plan = snapshot.plan
    saved, is_reused = plan.saved, plan.saved is not None
    if saved is None:
        # First, because saving takes seconds, in which there may be more snapshots.
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
