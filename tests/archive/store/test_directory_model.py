"""Publish, prune, crash, restart, and what others do there, against a dict of what must lie there.

Run as a script, this file is the process that dies: see `serve`.
"""

from __future__ import annotations

import itertools
import operator
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.properties import stateful
from support.versions import a_record, file_infos, tree, write_files, write_version

from keras_export_callbacks import ExportDirectory, ExportRecord, KeepBest, KeepLatest
from keras_export_callbacks.archive.errors import DamagedVersionError
from keras_export_callbacks.archive.store.publish import publish_record
from keras_export_callbacks.archive.store.record import MANIFEST, MANIFEST_DIGEST
from keras_export_callbacks.archive.store.staging import STAGING, Workspace
from keras_export_callbacks.archive.store.store import open_store

# Few, so that there are ties, and several directions of one metric.
OBJECTIVES = [("loss", "min"), ("loss", "max"), ("accuracy", "max")]
SCORES = st.dictionaries(
    st.sampled_from(["loss", "accuracy"]), st.sampled_from([0.0, 0.5, 1.0]), max_size=2
)
FILE = "saved_model.pb"
GRAPH = {FILE: b"a graph", "variables/variables.index": b"an index"}
FILES = st.sampled_from([GRAPH, GRAPH | {FILE: b"another graph"}])
WISH = a_record(0, created="", endpoints={})

# When the process dies: before it changes the file system for the how-manieth time, or never.
STEPS = st.none() | st.integers(1, 35)

# Python tells its audit hooks of these before they happen, and of files that are opened.
CHANGES = ["os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir"]

# Names that others may use, and whether a model server may take one for that number.
NAMES = {"{}": True, "00{}": True, "+{}": True, " {}": True, "-{}": False, "{}x": False}
KINDS = ["file", "directory", "empty directory", "link", "dangling link"]

COUNTS = st.integers(1, 2)
POLICIES = st.lists(
    st.builds(KeepLatest, COUNTS)
    | st.builds(lambda n, by: KeepBest(n, *by), COUNTS, st.sampled_from(OBJECTIVES)),
    min_size=1,
    max_size=2,
)


# What is done, here or in a process that dies. The checks hold in both.


def export(directory: ExportDirectory, record: ExportRecord, files: Mapping[str, bytes]) -> None:
    with directory.store.stage() as staged:
        write_files(staged, files)
        published = publish_record(staged, record, directory.store)
    assert published == directory.record(published.version)


def copy(directory: ExportDirectory, source: Path) -> None:
    published = directory.publish(source)
    assert published == directory.record(published.version)


def prune(
    directory: ExportDirectory, policies: list[KeepLatest | KeepBest], doomed: list[int]
) -> None:
    assert directory.prune(reduce(operator.or_, policies)) == doomed


def serve() -> None:
    """Do what is read from standard input, each in a forked process, and tell how that ended.

    Not in the process of the tests, which may have loaded TensorFlow: its threads
    do not survive a fork, and its memory makes one slow.
    """
    os.fsync = not_flushed
    with suppress(EOFError):
        while True:
            step, name, args = pickle.load(sys.stdin.buffer)
            child = os.fork()
            if not child:
                do_until_killed(step, globals()[name], args)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def do_until_killed(step: int, operation: Callable[..., None], args: Iterable[Any]) -> None:
    code = 1
    try:
        sys.addaudithook(killing(step))
        operation(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def killing(step: int) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that kills this process right before its `step`-th change to files."""
    left = step

    def hook(name: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        writes = name == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or name in CHANGES:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def not_flushed(descriptor: int) -> None:
    """In place of `os.fsync`: with a process nothing is lost, so spare the disk its thousands."""


# The model.


@dataclass(frozen=True)
class Entry:
    """What lies under one name in the base directory.

    Attributes:
        number: the one that its name claims; 0 if it claims none.
        contents: what `seen` says of it.
        record: what its manifest says, if that can be read.
        is_sound: whether all is as it was published.
    """

    number: int
    contents: Mapping[str, bytes | str | None]
    record: ExportRecord | None = None
    is_sound: bool = False


def seen(base: Path) -> dict[str, dict[str, bytes | str | None]]:
    """All that anyone sees, by name in the base directory and path below that."""
    entries: dict[str, dict[str, bytes | str | None]] = {}
    for path, content in tree(base).items():
        name, _, below = path.partition("/")
        entries.setdefault(name, {})[below] = content
    entries.pop(STAGING, None)
    return entries


def files_in(contents: Mapping[str, bytes | str | None]) -> dict[str, bytes]:
    """The files of a version that a writer makes, not the publishing."""
    return {
        name: content
        for name, content in contents.items()
        if isinstance(content, bytes) and name not in (MANIFEST, MANIFEST_DIGEST)
    }


def ranked(records: Mapping[int, ExportRecord], monitor: str, mode: str) -> list[int]:
    """The versions with that metric, best first; of equals, the one published first."""
    measured = [version for version in sorted(records) if monitor in records[version].metrics]
    return sorted(
        measured, key=lambda version: records[version].metrics[monitor], reverse=mode == "max"
    )


def survivors(
    records: Mapping[int, ExportRecord], policies: Iterable[KeepLatest | KeepBest]
) -> set[int]:
    """What a prune must leave: by the policies, the newest, and the best by each objective."""
    newest_first = sorted(records, reverse=True)
    kept = set(newest_first[:1])
    for policy in policies:
        if isinstance(policy, KeepLatest):
            kept.update(newest_first[: policy.n])
        else:
            kept.update(ranked(records, policy.monitor, policy.mode)[: policy.n])
    for monitor, mode in OBJECTIVES:
        own = {
            version: record
            for version, record in records.items()
            if (record.monitor, record.mode) == (monitor, mode)
        }
        if own:
            kept.update(ranked(records, monitor, mode)[:1])
            # One of them stays as well, or the objective would be forgotten.
            kept.update((ranked(own, monitor, mode) or sorted(own, reverse=True))[:1])
    return kept


@st.composite
def wishes(draw: st.DrawFn) -> ExportRecord:
    """What to export: for an objective or none, with its metric measured or not."""
    scores = draw(SCORES)
    monitor, mode = draw(st.sampled_from([(None, None), *OBJECTIVES]))
    value = scores.get(monitor)
    return replace(WISH, monitor=monitor, mode=mode, value=value, metrics=scores)


class BaseDirectory(RuleBasedStateMachine):
    """A base directory, and in `entries` what must be seen there.

    Args:
        until_killed: does something in a process that dies at a step; returns
            whether it came to its end before.
    """

    def __init__(self, until_killed: Callable[..., bool]) -> None:
        super().__init__()
        self.until_killed = until_killed
        self.root = Path(tempfile.mkdtemp(dir=Path.cwd()))
        self.base = self.root / "base"
        self.base.mkdir()
        self.outside = write_version(self.root / "elsewhere", 9, metrics={"loss": 0.5})
        record = ExportDirectory(self.outside.parent).record(9)
        self.elsewhere = Entry(9, seen(self.outside.parent)["9"], record, is_sound=True)
        self.directory = ExportDirectory(self.base)
        self.entries: dict[str, Entry] = {}
        self.writers: list[tuple[Workspace, Path, ExportRecord, Mapping[str, bytes]]] = []
        self.in_staging: set[str] = set()  # Of writers that live, and of others.
        self.may_have_debris = False
        self.highest = 0  # Of the numbers that `directory` has seen.

    def teardown(self) -> None:
        for space, *_ in self.writers:
            space.close()
        shutil.rmtree(self.root)

    def records(self) -> dict[int, ExportRecord]:
        return {
            entry.number: entry.record
            for entry in self.entries.values()
            if entry.record is not None
        }

    def versions(self) -> dict[int, Entry]:
        """The entries that are versions, whoever wrote them: directories with something in them."""
        return {
            entry.number: entry
            for name, entry in self.entries.items()
            if name == str(entry.number) and entry.contents[""] is None and len(entry.contents) > 1
        }

    def enter(
        self, name: str, number: int, record: ExportRecord | None = None, is_sound: bool = False
    ) -> None:
        """What lies there now must stay as it is; so what verifies now, always will."""
        entry = self.entries[name] = Entry(number, seen(self.base)[name], record, is_sound)
        if entry is self.versions().get(number):
            assert (self.directory.verify(number) == []) == is_sound

    def next_number(self, seen: int = 0) -> int:
        """One above what is there, and above the highest that its writer has `seen` before."""
        return max([seen, *(entry.number for entry in self.entries.values())]) + 1

    def drawn(self, data: st.DataObject) -> int:
        """Some version with a manifest that can be read."""
        return data.draw(st.sampled_from(sorted(self.records())))

    # Writers, who may die.

    def do(self, step: int | None, operation: Callable[..., None], *args: Any) -> bool:
        """Do it, dying at a step if one is given; return whether it came to its end."""
        if step is None:
            operation(self.directory, *args)
        ended = step is None or self.until_killed(step, operation, self.directory, *args)
        self.may_have_debris = not ended
        return ended

    def check_published(
        self,
        ended: bool,
        wish: ExportRecord,
        files: Mapping[str, bytes | str | None],
        seen: int = 0,
    ) -> None:
        """What was asked for is the next version; only if its writer died, nothing may be."""
        number = self.next_number(seen)
        path = self.base / str(number)
        if not os.path.lexists(path):
            assert not ended
            return
        record = ExportDirectory(self.base).record(number)
        assert record == replace(wish, path=path, version=number, created=record.created)
        assert record.created
        self.enter(path.name, number, record, is_sound=True)
        assert files_in(self.entries[path.name].contents) == files

    @initialize(wishes=st.lists(wishes(), max_size=6), files=FILES, linked=st.booleans())
    def start(self, wishes: list[ExportRecord], files: dict[str, bytes], linked: bool) -> None:
        if linked:  # Where no writer may follow or remove it.
            (self.base / STAGING).mkdir()
            (self.base / STAGING / "link").symlink_to(self.outside)
            self.in_staging.add("link")
        for wish in wishes:
            self.export(wish, files, step=None)

    @rule(wish=wishes(), files=FILES, step=STEPS)
    def export(self, wish: ExportRecord, files: dict[str, bytes], step: int | None) -> None:
        wish = replace(wish, files=file_infos(files))
        seen = self.highest
        self.check_published(self.do(step, export, wish, files), wish, files, seen)

    def copy(self, source: Entry, step: int | None) -> None:
        assert source.record is not None
        seen = self.highest
        ended = self.do(step, copy, source.record.path)
        path = source.record.path
        origin = path.name if path.parent == self.base else str(path)
        wish = replace(source.record, copied_from=origin, withdrawn=())
        self.check_published(ended, wish, files_in(source.contents), seen)

    @rule(data=st.data(), step=STEPS)
    def publish_a_copy(self, data: st.DataObject, step: int | None) -> None:
        number = data.draw(st.sampled_from([None, *self.versions()]))
        source = self.versions()[number] if number else self.elsewhere
        if not source.is_sound:
            with pytest.raises(DamagedVersionError):
                self.directory.publish(self.base / str(number))
        else:
            self.copy(source, step)

    @precondition(lambda self: len(self.records()) > 1)
    @rule(policies=POLICIES, step=STEPS)
    def prune(self, policies: list[KeepLatest | KeepBest], step: int | None) -> None:
        records = self.records()
        doomed = sorted(records.keys() - survivors(records, policies))
        if not doomed:  # Nor is anything swept.
            prune(self.directory, policies, doomed)
            return
        ended = self.do(step, prune, policies, doomed)
        # One after the other, the oldest first: those that are gone come before the others.
        left = [version for version in doomed if (self.base / str(version)).exists()]
        removed = doomed[: len(doomed) - len(left)]
        assert removed == doomed or not ended
        for version in removed:
            del self.entries[str(version)]

    @precondition(lambda self: len(self.writers) < 2)
    @rule(wish=wishes(), files=FILES)
    def begin_a_long_export(self, wish: ExportRecord, files: dict[str, bytes]) -> None:
        space = Workspace(self.base)
        staged = space.stage()
        write_files(staged, files)
        self.writers.append((space, staged, replace(wish, files=file_infos(files)), files))
        self.in_staging.add(staged.parent.name)
        self.may_have_debris = False

    @precondition(lambda self: self.writers)
    @rule()
    def end_a_long_export(self) -> None:
        space, staged, wish, files = self.writers.pop(0)
        publish_record(staged, wish, open_store(self.base))
        space.close()
        self.in_staging.remove(staged.parent.name)
        self.check_published(True, wish, files)

    @rule()
    def restart(self) -> None:
        self.directory = ExportDirectory(self.base)
        self.highest = 0
        Workspace(self.base).close()
        self.may_have_debris = False

    # Others, who may do anything.

    @precondition(records)
    @rule(data=st.data(), name=st.sampled_from([FILE, MANIFEST]), content=st.none() | st.just(b"{"))
    def damage_a_file(self, data: st.DataObject, name: str, content: bytes | None) -> None:
        version = self.drawn(data)
        put(self.base / str(version) / name, content)
        self.enter(str(version), version, None if name == MANIFEST else self.records()[version])

    @precondition(records)
    @rule(data=st.data(), scores=SCORES)
    def edit_a_manifest(self, data: st.DataObject, scores: dict[str, float]) -> None:
        version = self.drawn(data)
        record = self.records()[version]
        value = scores.get(record.monitor or "")
        record = replace(record, reason="edited", metrics=scores, value=value)
        put(record.path / MANIFEST, record.to_json().encode())
        self.enter(str(version), version, record)

    @precondition(records)
    @rule(data=st.data())
    def delete_a_version(self, data: st.DataObject) -> None:
        version = self.drawn(data)
        shutil.rmtree(self.base / str(version))
        del self.entries[str(version)]

    @rule(form=st.sampled_from(list(NAMES)), kind=st.sampled_from(KINDS), above=st.integers(-2, 2))
    def add_something(self, form: str, kind: str, above: int) -> None:
        number = max(self.next_number() + above, 1)
        name = form.format(number)
        if name not in self.entries:
            make(self.base / name, kind, self.outside)
            self.enter(name, number if NAMES[form] else 0)

    # What always holds.

    def check_all(self) -> None:
        self.all_that_is_seen_was_published_or_put_there()
        self.the_directory_tells_what_is_there()
        self.staging_holds_what_is_in_use_and_only_after_a_death_more()

    @invariant()
    def all_that_is_seen_was_published_or_put_there(self) -> None:
        assert seen(self.base) == {name: entry.contents for name, entry in self.entries.items()}
        assert seen(self.outside.parent) == {"9": self.elsewhere.contents}

    @invariant()
    def the_directory_tells_what_is_there(self) -> None:
        records = self.records()
        assert self.directory.versions() == sorted(self.versions())
        self.highest = self.next_number(self.highest) - 1
        assert self.directory.records() == [records[version] for version in sorted(records)]
        latest = self.directory.latest()
        assert (latest and latest.version) == max(records, default=None)
        for monitor, mode in OBJECTIVES:
            best = self.directory.best(monitor, mode)  # type: ignore[arg-type]
            assert ([best.version] if best else []) == ranked(records, monitor, mode)[:1]

    @invariant()
    def staging_holds_what_is_in_use_and_only_after_a_death_more(self) -> None:
        staging = self.base / STAGING
        names = set(os.listdir(staging)) if staging.exists() else set()
        assert names >= self.in_staging
        if not self.may_have_debris:
            assert names == self.in_staging
            assert staging.exists() == bool(self.in_staging)


def put(path: Path, content: bytes | None) -> None:
    """Replace a file, as editors do: others that are linked to it keep their contents."""
    if content is None:
        path.unlink(missing_ok=True)
    else:
        new = path.with_name("new")
        new.write_bytes(content)
        new.replace(path)


def make(path: Path, kind: str, outside: Path) -> None:
    if kind == "file":
        path.write_text("theirs")
    elif kind.endswith("directory"):
        write_files(path, {} if kind.startswith("empty") else {"theirs": b""})
        path.mkdir(exist_ok=True)
    else:
        path.symlink_to(outside if kind == "link" else "nowhere")


@pytest.fixture
def until_killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., bool]]:
    """Do something in a process that is killed at a step; tell whether it ended before that."""
    monkeypatch.setattr(os, "fsync", not_flushed)
    with subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", __file__],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def do(step: int, operation: Callable[..., None], *args: Any) -> bool:
            pickle.dump((step, operation.__name__, args), stdin)
            stdin.flush()
            code = int(stdout.readline())
            assert code in (0, -signal.SIGKILL), "It failed: standard error tells why."
            return code == 0

        yield do


def test_a_base_directory_is_as_a_dict_of_what_was_published_says(
    until_killed: Callable[..., bool],
) -> None:
    run_state_machine_as_test(lambda: BaseDirectory(until_killed), settings=stateful)


@pytest.mark.parametrize(
    "write",
    [
        lambda state, step: state.export(WISH, GRAPH, step),
        lambda state, step: state.copy(state.elsewhere, step),
        lambda state, step: state.prune([KeepLatest(1)], step),
    ],
    ids=["export", "copy", "prune"],
)
def test_a_writer_may_die_at_each_of_its_steps(
    write: Callable[[BaseDirectory, int], None], until_killed: Callable[..., bool]
) -> None:
    for step in itertools.count(1):
        state = BaseDirectory(until_killed)
        state.start([WISH, WISH], GRAPH, linked=False)
        write(state, step)
        state.check_all()
        ended = not state.may_have_debris
        state.restart()
        state.check_all()
        state.teardown()
        if ended:
            break
    assert step > 10  # Or none was killed.


if __name__ == "__main__":
    serve()
