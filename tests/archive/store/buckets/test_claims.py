"""Writers on several machines, of which some die, and some are frozen for a while."""

from __future__ import annotations

import contextlib
import io
import itertools
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.bucket_target import publish
from support.buckets import left, sweep
from support.object_stores import SERVERS, Server
from support.places import Crash, commit, export, patched, place_of
from support.processes import run_together, started

from keras_export_callbacks import ExportDirectory, KeepLatest
from keras_export_callbacks.archive.store.buckets import claims, store
from keras_export_callbacks.archive.store.buckets.objects import Bucket, bucket_at
from keras_export_callbacks.archive.store.record import MANIFEST
from keras_export_callbacks.archive.store.store import open_store

GRAPH = "saved_model.pb"


TARGET = "import sys; from support.bucket_target import main; main(*sys.argv[1:])"


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "writers", "count"),
    [
        ("s3", 4, 4),
        *(pytest.param(kind, 4, 25, marks=SLOW) for kind in SERVERS),
        *(pytest.param(kind, 8, 12, marks=SLOW) for kind in SERVERS),
    ],
)
def test_processes_that_publish_at_once_get_each_number_once(
    kind: str, writers: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(kind)
    place.enter(monkeypatch)
    url = str(place.base)
    printed = run_together(TARGET, *[["publish", url, "60", str(count)]] * writers)
    taken = [[int(line) for line in each.split()] for each in printed]
    assert all(versions == sorted(versions) for versions in taken)
    versions = sorted(itertools.chain(*taken))
    assert versions == list(range(1, writers * count + 1))
    directory = ExportDirectory(url)
    assert directory.versions() == versions
    assert all(directory.verify(version) == [] for version in versions)
    assert left(url) == []


class Watching:
    """Looks at a bucket as a model server does, which knows of no claims.

    Attributes:
        problems: the versions with a graph that lacked something else.
        looks: how often it looked.
    """

    def __init__(self, url: str) -> None:
        self.problems: list[str] = []
        self.looks = 0
        self._bucket, self._key = bucket_at(url)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        expected = ["variables/frozen", "variables/variables.index", MANIFEST]
        while not self._ended.wait(0.01):
            start = len(self._key) + 1
            names = {entry.key[start:] for entry in self._bucket.below(self._key)}
            graphs = [name.removesuffix(GRAPH) for name in names if name.endswith(f"/{GRAPH}")]
            absent = [at + name for at in graphs for name in expected if at + name not in names]
            self.problems += [name for name in absent if name[0].isdigit()]
            self.looks += 1


@pytest.mark.parametrize(
    ("kind", "kills"), [("s3", 6), *(pytest.param(kind, 70, marks=SLOW) for kind in SERVERS)]
)
def test_writers_that_are_killed_leave_nothing_that_is_incomplete(
    kind: str, kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(kind)
    place.enter(monkeypatch)
    url = str(place.base)
    dice = random.Random(kills)
    published: list[int] = []

    def begin(stack: contextlib.ExitStack) -> subprocess.Popen[str]:
        process = stack.enter_context(started(TARGET, "publish", url, "1", "0"))
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("\n")
        process.stdin.flush()
        return process

    with Watching(url) as watching:
        for _ in range(kills):
            with contextlib.ExitStack() as stack:
                one, other = begin(stack), begin(stack)
                time.sleep(dice.uniform(0.05, 0.5))
                one.kill()
                time.sleep(dice.uniform(0.0, 0.2))
                other.kill()
                for process in (one, other):
                    lines = process.communicate()[0].splitlines()
                    published += [int(line) for line in lines]
        sweep(url)
        again = publish(url)
        sweep(url)
    directory = ExportDirectory(url)
    versions = directory.versions()
    assert len(set(published)) == len(published)
    assert {*published} <= {*versions}
    assert again == max(versions)
    assert all(directory.verify(version) == [] for version in versions)
    assert watching.problems == []
    assert watching.looks > 0
    assert left(url) == []


@pytest.mark.parametrize(
    ("kind", "count"), [("s3", 5), *(pytest.param(kind, 25, marks=SLOW) for kind in SERVERS)]
)
def test_writers_a_remover_a_sweeper_and_a_reader_at_once(
    kind: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(kind)
    place.enter(monkeypatch)
    url = str(place.base)
    publish(url)
    with Watching(url) as watching:
        printed = run_together(
            TARGET,
            *[[what, url, "60", str(count)] for what in ("publish", "publish", "prune", "sweep")],
        )
    taken = sorted(int(line) for each in printed for line in each.split())
    assert taken == list(range(2, 2 * count + 2))
    assert watching.problems == []
    assert watching.looks > 0
    directory = ExportDirectory(url)
    directory.prune(KeepLatest(3))
    assert directory.versions() == taken[-3:]
    assert all(directory.verify(version) == [] for version in taken[-3:])
    sweep(url)
    assert left(url) == []


def frozen_at(step: str, name: str, is_killed: bool = False) -> Callable[..., Any]:
    """A method of `Bucket` that, once, lets others take its writer for dead before it goes on.

    If it is killed, it goes on for this one step, which writes something.
    """
    original = getattr(Bucket, step)
    is_first = True

    def act(self: Bucket, *args: Any) -> Any:
        nonlocal is_first
        if is_first and any(str(arg).endswith(name) for arg in args):
            is_first = False
            with patched(claims, LEASE=-1.0, STAGING_LEASE=-1.0):
                # As other writers do that come then.
                for epoch in (2, 3):
                    export(open_store(f"{self.url}/base"), epoch=epoch)
            if is_killed:
                self.put(str(args[-1]) if step == "copy" else str(args[0]), b"late")
                raise Crash
        return original(self, *args)

    return act


@pytest.mark.parametrize(
    ("step", "name"),
    [
        ("put", "variables.index"),
        ("copy", "variables.index"),
        ("put", "export.json"),
        ("create", GRAPH),
    ],
)
def test_a_writer_that_was_frozen_for_long_begins_anew(
    url: str, step: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, step, frozen_at(step, name))
    record = export(open_store(url), epoch=1)
    directory = ExportDirectory(url)
    others = [version for version in directory.versions() if version != record.version]
    assert len(others) == 2
    assert record.version > max(others)
    assert [directory.record(version).epoch for version in (*others, record.version)] == [2, 3, 1]
    assert [directory.verify(version) for version in directory.versions()] == [[], [], []]
    sweep(url)
    assert left(url) == []


@pytest.mark.parametrize(("step", "name"), [("copy", "variables.index"), ("create", GRAPH)])
def test_a_writer_that_was_frozen_and_then_killed_leaves_nothing_that_counts(
    url: str, step: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, step, frozen_at(step, name, is_killed=True))
        patch.setattr(claims, "clean_up", lambda function: None)  # Nobody is left to do it.
        patch.setattr(store, "clean_up", lambda function: None)
        with pytest.raises(Crash):
            export(open_store(url), epoch=1)
    directory = ExportDirectory(url)
    assert [record.epoch for record in directory.records()] == [2, 3]
    assert directory.versions() == [2, 3]
    sweep(url)
    assert left(url) == []
    assert export(open_store(url)).version == 4


def test_a_claim_that_is_given_up_is_not_deleted(s3: Server, url: str) -> None:
    """The answer may get lost, and the repeated request would delete that of another writer."""
    deleted: list[str] = []

    def note(environ: dict[str, Any]) -> None:
        if environ["REQUEST_METHOD"] in ("DELETE", "POST"):
            size = int(environ.get("CONTENT_LENGTH") or 0)
            body = environ["wsgi.input"].read(size)
            environ["wsgi.input"] = io.BytesIO(body)
            deleted.append(f"{environ['PATH_INFO']} {body.decode()}")

    s3.before = note  # type: ignore[assignment]

    def fail(version: int) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        commit(open_store(url), finish=fail)
    assert deleted
    assert not any(claims.CLAIMS in each for each in deleted)
    assert commit(open_store(url)) == 1
    assert any(f"{claims.CLAIMS}/1" in each for each in deleted)
    assert left(url) == []


def test_a_stopped_process_goes_on_after_its_lease(url: str) -> None:
    with started(TARGET, "publish", url, "1", "12") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.stdin.write("\n")
        process.stdin.flush()
        first = int(process.stdout.readline())
        process.send_signal(signal.SIGSTOP)
        with patched(claims, LEASE=-1.0, STAGING_LEASE=-1.0):
            own = [export(open_store(url)).version for _ in range(3)]
        process.send_signal(signal.SIGCONT)
        theirs = [first, *map(int, process.communicate()[0].split())]
    assert process.returncode == 0
    assert len({*theirs, *own}) == 15
    directory = ExportDirectory(url)
    assert directory.versions() == sorted([*theirs, *own])
    assert all(directory.verify(version) == [] for version in directory.versions())
    sweep(url)
    assert left(url) == []


def test_a_live_writer_is_waited_for(url: str) -> None:
    may_end, waits = threading.Event(), threading.Event()
    asked: list[int] = []

    def finish(version: int) -> None:
        waits.set()
        assert may_end.wait(30)
        asked.append(version)

    def look_again(version: int) -> None:
        asked.append(version)

    one = threading.Thread(target=commit, args=(open_store(url),), kwargs={"finish": finish})
    one.start()
    assert waits.wait(30)
    other = threading.Thread(target=commit, args=(open_store(url),), kwargs={"finish": look_again})
    other.start()
    other.join(0.5)
    assert asked == []  # `finish` of the other one is not called meanwhile.
    may_end.set()
    one.join()
    other.join()
    assert asked == [1, 2]


def test_a_removed_newest_number_is_not_given_out_again(url: str) -> None:
    commit(open_store(url))
    commit(open_store(url))
    open_store(url).remove(2)
    assert sorted(open_store(url).versions()) == [1]
    assert commit(open_store(url)) == 3
    sweep(url)
    assert left(url) == []


@pytest.mark.parametrize("place", ["in the request", "after it"])
def test_ctrl_c_while_a_number_is_claimed_leaves_no_claim(
    url: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next writer would wait until the claim expires."""
    create, every = Bucket.create, claims.Claims.all
    interrupted = []

    def interrupt() -> None:
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    def create_then(bucket: Bucket, key: str, content: bytes) -> Any:
        created = create(bucket, key, content)
        if "/.claims/" in key and place == "in the request":
            interrupt()
        return created

    def all_then(these: claims.Claims) -> Any:
        found = every(these)
        if found.claims and place == "after it":
            interrupt()
        return found

    store = open_store(url)
    store.check()
    monkeypatch.setattr(Bucket, "create", create_then)
    monkeypatch.setattr(claims.Claims, "all", all_then)
    with pytest.raises(KeyboardInterrupt):
        commit(store)
    assert interrupted
    bucket, key = bucket_at(url)
    assert claims.Claims(bucket, f"{key}/").all().claims == {}
    assert commit(open_store(url)) == 1
