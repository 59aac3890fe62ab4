"""What every kind of place for versions does, whatever it is made of.

A place that is not here is not supported. What only one kind can do is tested
in `test_local.py` and `test_copying.py`.
"""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from support.places import KINDS, Place, before_each_step, commit, crashes, export, place_of
from support.processes import run_together
from support.versions import FILES, a_record, write_files, write_version

from keras_export_callbacks import ExportDirectory, ExportError, KeepBest, KeepLatest
from keras_export_callbacks.archive.errors import (
    DamagedVersionError,
    SupersededError,
    VersionNotFoundError,
)
from keras_export_callbacks.archive.store.record import MANIFEST, MANIFEST_DIGEST
from keras_export_callbacks.archive.store.store import Store
from keras_export_callbacks.archive.store.versions import MAX_VERSION

GRAPH = "saved_model.pb"


# What takes long by many requests is done on one of the servers; on the others by `slow` tests.
_SOME = [
    pytest.param(kind, marks=[pytest.mark.slow] if kind in ("google", "azure") else [])
    for kind in KINDS
]


@pytest.fixture(params=KINDS)
def place(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    """An empty place of each kind, and an empty directory for temporary files."""
    place = place_of(request.param)
    place.enter(monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    return place


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A version in another, local directory."""
    return write_version(tmp_path / "source", 1, metrics={"loss": 0.5})


def assert_sound(place: Place) -> None:
    """What readers are told of is whole, with its graph in place."""
    directory = place.directory()
    for version in directory.versions():
        assert directory.verify(version) == []


def assert_nothing_is_left(place: Place, versions: list[int]) -> None:
    """The base directory holds these versions, and nothing else, not even a marker."""
    assert sorted(place.store().names()) == sorted(map(str, versions))
    assert not any(part.startswith(".") for name in place.contents() for part in name.split("/"))


# What is there.


def test_a_place_need_not_exist(place: Place) -> None:
    store, directory = place.store(), place.directory()
    assert store.names() == []
    assert list(store.versions()) == directory.versions() == []
    assert not store.has(1)
    assert store.stat("1/saved_model.pb") is None
    assert directory.records() == []
    assert directory.latest() is None
    assert directory.best("m", "min") is None
    assert directory.prune(KeepLatest(1)) == []
    with pytest.raises(VersionNotFoundError, match=rf"no version 1 in '{place.base}'. It holds no"):
        directory.record(1)
    assert place.store().names() == []


def test_every_name_is_listed_and_every_file_by_its_path(place: Place) -> None:
    place.put("1/a", b"")
    place.put("1/b/c", b"")
    place.put("1/b/d/e", b"")
    place.put("10/f", b"")
    place.put("other", b"")
    place.make("empty")
    store = place.store()
    directories = ["empty"] if place.has_directories else []
    assert sorted(store.names()) == ["1", "10", *directories, "other"]
    assert sorted(store.at("1").files()) == ["a", "b/c", "b/d/e"]
    assert sorted(store.at("10").files()) == ["f"]


@pytest.mark.parametrize("inside", ["9", "9/deeper", "007", "1", "1/variables"])
def test_no_base_directory_is_where_a_server_would_take_it_for_a_version(
    place: Place, source: Path, inside: str
) -> None:
    place.directory().publish(source)
    before = place.contents()
    with pytest.raises(ExportError, match=rf"Received base_dir='{place.base}/{inside}', but"):
        ExportDirectory(f"{place.base}/{inside}").publish(source)
    assert place.contents() == before


def test_a_number_is_the_name_of_a_base_directory_elsewhere(place: Place, source: Path) -> None:
    for year in ("2024", "2025"):
        assert ExportDirectory(f"{place.base}/{year}").publish(source).version == 1
    assert ExportDirectory(f"{place.base}/2024").publish(f"{place.base}/2025/1").version == 2
    with pytest.raises(VersionNotFoundError, match="2024' is a base directory, which holds 1, 2"):
        place.directory().publish(f"{place.base}/2024")


def test_a_message_names_the_base_directories_below(place: Place, source: Path) -> None:
    for trial in (0, 1):
        ExportDirectory(f"{place.base}/trials/{trial}-a/execution_0").publish(source)
    named = rf"'{place.base}/trials/0-a/execution_0', '{place.base}/trials/1-a/execution_0'\."
    with pytest.raises(
        VersionNotFoundError, match=rf"no versions in '{place.base}'\. There.*{named}"
    ):
        place.directory().rollback()


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**20 + 1])
def test_a_file_is_read_and_fetched_as_it_was_written(place: Place, size: int) -> None:
    content = os.urandom(size)
    place.put("1/file", content)
    store = place.store()
    status = store.stat("1/file")
    assert status is not None
    assert status.size == size
    assert b"".join(store.blocks("1/file")) == content
    store.fetch("1/file", Path("fetched"))
    assert Path("fetched").read_bytes() == content


def test_a_file_that_is_not_there_is_told(place: Place) -> None:
    place.put("1/file", b"")
    store = place.store()
    assert store.stat("1/other") is None
    assert store.stat("2/file") is None
    with pytest.raises(FileNotFoundError):
        list(store.blocks("1/other"))
    with pytest.raises(FileNotFoundError):
        store.fetch("1/other", Path("fetched"))


def test_a_file_that_was_replaced_is_another(place: Place) -> None:
    place.put("1/file", b"one")
    place.put("1/same", b"one")
    store = place.store()
    before = [store.stat(name) for name in ("1/file", "1/same")]
    place.put("1/file", b"other")
    after = [store.stat(name) for name in ("1/file", "1/same")]
    assert before[0] is not None
    assert after[0] is not None
    assert before[0].identity != after[0].identity
    assert before[1] == after[1]


HOSTILE = ["007", "+12", " 13", "-20", "1x", "x1", "0", "1.5", "٣", str(MAX_VERSION + 1)]


def test_only_canonical_directories_with_something_in_them_are_versions(place: Place) -> None:
    place.put("1/file", b"")
    place.put("3/saved_model.pb", b"")
    place.make("4")
    place.put("11", b"a file")
    for name in HOSTILE:
        place.put(f"{name}/saved_model.pb", b"")
    for reader in (place.store(), place.directory()):
        assert sorted(reader.versions()) == [1, 3]
    assert [place.store().has(version) for version in (1, 2, 3, 4, 7, 11)] == [
        True, False, True, False, False, False,
    ]  # fmt: skip


def test_no_number_that_a_server_may_read_from_a_name_is_given_out(place: Place) -> None:
    assert commit(place.store()) == 1
    for name, following in [
        ("007", 8), ("+12", 13), (" 13", 14), ("-20", 15), ("21x", 16), ("٣٣", 17),
        (str(MAX_VERSION + 1), 18),
    ]:  # fmt: skip
        place.make(name)
        place.put(f"{name}/file", b"")
        assert commit(place.store()) == following
    place.put("30", b"a file")
    assert commit(place.store()) == 31


def test_the_highest_int64_is_listed_and_nothing_is_published_above_it(
    place: Place, source: Path
) -> None:
    place.put(f"{MAX_VERSION}/saved_model.pb", b"a graph")
    before = place.contents()
    directory = place.directory()
    assert directory.versions() == [MAX_VERSION]
    with pytest.raises(ExportError, match="no version can be higher"):
        directory.publish(source)
    assert place.contents() == before


def test_versions_are_told_in_order_with_their_records(place: Place) -> None:
    for value in (2.0, 3.0, 1.0):
        export(place.store(), metrics={"m": value})
    place.put("9/other", b"not ours")
    export(place.store())
    directory = place.directory()
    assert directory.versions() == [1, 2, 3, 9, 10]
    assert [record.version for record in directory.records()] == [1, 2, 3, 10]
    assert [str(record.path) for record in directory.records()] == [
        str(place.base / str(version)) for version in (1, 2, 3, 10)
    ]
    latest = directory.latest()
    assert latest is not None
    assert latest == directory.record(10)
    assert latest == a_record(10, path=place.base / "10", created=latest.created)
    for mode, version in (("min", 3), ("max", 2)):
        best = directory.best("m", mode)  # type: ignore[arg-type]
        assert best is not None
        assert best.version == version
    assert directory.best("other", "min") is None


def test_a_manifest_that_was_replaced_or_damaged_is_read_again(place: Place) -> None:
    for _ in range(3):
        export(place.store())
    directory = place.directory()
    first = directory.records()
    assert directory.records() == first
    edited = replace(first[1], reason="edited")
    place.put(f"2/{MANIFEST}", edited.to_json().encode())
    assert directory.records() == [first[0], edited, first[2]]
    place.put(f"2/{MANIFEST}", b"{")
    assert directory.records() == [first[0], first[2]]
    with pytest.raises(DamagedVersionError, match=r"export.json' cannot be used"):
        directory.record(2)
    place.delete(f"2/{MANIFEST}")
    assert directory.records() == [first[0], first[2]]
    with pytest.raises(DamagedVersionError, match=r"has no 'assets.extra/export.json'"):
        directory.record(2)
    place.put(f"2/{MANIFEST}", edited.to_json().encode())
    assert directory.records() == [first[0], edited, first[2]]


def test_every_difference_from_what_was_published_is_found(place: Place) -> None:
    export(place.store())
    directory = place.directory()
    assert directory.verify(1) == []
    for name in (GRAPH, "variables/variables.index"):
        published = place.read(f"1/{name}")
        place.put(f"1/{name}", bytes([published[0] ^ 1]) + published[1:])
        assert directory.verify(1) == [f"'{name}' has other contents than were published"]
        place.put(f"1/{name}", published + b"!")
        sizes = f"has {len(published) + 1} bytes, {len(published)} were published"
        assert directory.verify(1) == [f"'{name}' {sizes}"]
        place.delete(f"1/{name}")
        assert directory.verify(1) == [f"'{name}' is missing"]
        place.put(f"1/{name}", published)
    for name in ("new", "variables/new", "a/b/new", ".hidden", ".unfinished-x/new"):
        place.put(f"1/{name}", b"")
        assert directory.verify(1) == [f"'{name}' was added"]
        place.delete(f"1/{name}")
    place.delete(f"1/{MANIFEST_DIGEST}")
    assert directory.verify(1) == [f"'{MANIFEST_DIGEST}' is missing"]


# What a writer does.


def test_a_version_appears_complete_and_nothing_else_is_left(place: Place) -> None:
    asked: list[int] = []

    def finish(version: int) -> None:
        asked.append(version)
        assert not place.store().versions()
        (staged / "last").write_text(str(version))

    store = place.store()
    with store.stage() as staged:
        assert list(staged.iterdir()) == []
        write_files(staged)
        (staged / "empty").mkdir()
        assert store.commit(staged, finish) == 1
    assert set(asked) == {1}  # Once more, where it is tried in another way.
    assert list(store.versions()) == [1]
    assert store.has(1)
    assert place.contents("1") == {**FILES, "last": b"1"}
    assert_nothing_is_left(place, [1])
    assert not staged.exists()


def test_a_writer_that_publishes_nothing_leaves_nothing(place: Place) -> None:
    with suppress(ZeroDivisionError), place.store().stage() as staged:
        write_files(staged)
        raise ZeroDivisionError
    assert not staged.exists()
    assert place.store().names() == []


def test_what_fails_in_finish_publishes_nothing_and_locks_no_one_out(place: Place) -> None:
    def fail(version: int) -> None:
        raise RuntimeError("no luck")

    commit(place.store())
    before = place.contents()
    store = place.store()
    with store.stage() as staged:
        write_files(staged)
        with pytest.raises(RuntimeError, match="no luck"):
            store.commit(staged, fail)
        assert {name: place.read(name) for name in before} == before
        assert list(store.versions()) == [1]
        assert commit(place.store()) == 2  # Another writer; the number was not used.
        assert store.commit(staged, lambda version: None) == 3
    assert_nothing_is_left(place, [1, 2, 3])


def test_several_versions_may_be_staged_at_once(place: Place) -> None:
    store = place.store()
    with store.stage() as one, store.stage() as other:
        assert one != other
        write_files(one)
        write_files(other, FILES | {"other": b""})
        assert store.commit(other, lambda version: None) == 1
        assert store.commit(one, lambda version: None) == 2
    assert place.contents("1") == {**FILES, "other": b""}
    assert place.contents("2") == FILES


def test_a_number_is_never_given_out_twice_by_one_who_has_seen_it(place: Place) -> None:
    store = place.store()
    for expected in (1, 2, 3):
        assert commit(store) == expected
        store.remove(expected)
        assert store.names() == []
    # A number that is given out, and not used, is given out again.
    with pytest.raises(ZeroDivisionError):
        commit(store, finish=lambda version: 1 / 0)  # type: ignore[arg-type,return-value]
    assert commit(store) == 4
    # Others go by what is there.
    assert commit(place.store()) == 5


@pytest.mark.parametrize("how", [copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))])
def test_a_copy_of_a_store_in_use_publishes_to_the_same_place(
    place: Place, how: Callable[[Store], Store]
) -> None:
    store = place.store()
    store.check()
    commit(store)
    assert commit(how(store)) == 2
    assert commit(store) == 3
    assert sorted(place.directory().versions()) == [1, 2, 3]


@pytest.mark.parametrize("seen_by", ["names", "versions"])
def test_what_was_listed_was_seen(place: Place, seen_by: str) -> None:
    commit(place.store())
    commit(place.store())
    store = place.store()
    getattr(store, seen_by)()
    for version in (1, 2):
        place.store().remove(version)
    assert commit(store) == 3


def test_a_directory_over_a_store_shares_what_it_has_seen(place: Place) -> None:
    for _ in range(2):
        export(place.store())
    store = place.store()
    directory = ExportDirectory.over(store)
    assert directory.path == place.base
    assert [record.version for record in directory.records()] == [1, 2]
    for version in (1, 2):
        place.store().remove(version)
    assert export(store).version == 3
    assert directory.versions() == [3]


@pytest.mark.parametrize("seen_by", ["versions", "records", "latest", "publish"])
def test_numbers_go_on_when_a_directory_is_emptied_under_one_who_publishes(
    place: Place, source: Path, seen_by: str
) -> None:
    directory = place.directory()
    for _ in range(2):
        place.directory().publish(source)
    if seen_by == "publish":
        directory.publish(source)
    else:
        getattr(directory, seen_by)()
    highest = max(directory.versions()) if seen_by == "publish" else 2
    for version in place.store().versions():
        place.store().remove(version)
    assert directory.publish(source).version == highest + 1
    assert place.directory().versions() == [highest + 1]


def test_a_removed_version_is_gone_and_others_stay(place: Place) -> None:
    for _ in range(3):
        commit(place.store())
    before = place.contents()
    place.store().remove(2)
    assert sorted(place.store().versions()) == [1, 3]
    assert place.contents() == {
        name: content for name, content in before.items() if not name.startswith("2/")
    }
    assert_nothing_is_left(place, [1, 3])


def test_a_version_that_is_not_there_is_not_removed(place: Place) -> None:
    commit(place.store())
    with pytest.raises(FileNotFoundError):
        place.store().remove(2)
    assert_nothing_is_left(place, [1])


def test_a_record_is_published_as_it_will_be_read(place: Place) -> None:
    record = export(place.store(), created="")
    assert record == place.directory().record(1)
    assert record.write_seconds == 0.5
    assert_nothing_is_left(place, [1])


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("epoch", "3", ExportError),
        ("step", 1.5, ExportError),
        ("value", float("nan"), ValueError),
        ("reason", object(), TypeError),
    ],
)
def test_what_no_one_could_read_is_not_published(
    place: Place, field: str, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        export(place.store(), **{field: value})
    assert place.store().names() == []


def test_what_is_not_wanted_any_more_is_not_published(place: Place) -> None:
    def superseded() -> None:
        raise SupersededError

    export(place.store())
    before = place.contents()
    with pytest.raises(SupersededError):
        export(place.store(), check=superseded)
    assert place.contents() == before


def test_the_time_of_writing_ends_with_the_commit(place: Place) -> None:
    start = time.perf_counter()
    record = export(place.store(), snapshot_time=start - 100)
    passed = time.perf_counter() - start
    assert 100 <= record.write_seconds <= 100 + passed


# What a user does.


def test_versions_move_between_places(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    export(place.store(), files=FILES | {"saved_model.pb": b"one"})
    export(place.store(), files=FILES | {"saved_model.pb": b"two"}, reason="two")
    for kind in ("local", "s3"):
        place_of(kind).enter(monkeypatch)
        other = replace(place_of(kind), base=place_of(kind).base / "other")
        assert other.directory().publish(place.base / "2").version == 1
        assert place.directory().publish(other.base / "1").version in (3, 4)
        assert other.directory().verify(1) == []
        record = other.directory().record(1)
        assert record == replace(
            place.directory().record(2),
            path=other.base / "1",
            version=1,
            created=record.created,
            copied_from=str(place.base / "2"),
        )
    assert place.directory().versions() == [1, 2, 3, 4]
    assert_sound(place)
    assert place.read("4/saved_model.pb") == b"two"
    assert place.directory().record(3).files == place.directory().record(2).files


def test_an_older_version_is_published_again(place: Place) -> None:
    for name in ("one", "two"):
        export(place.store(), reason=name)
    before = place.contents("1")
    again = place.directory().publish(place.base / "1")
    assert (again.version, again.reason) == (3, "one")
    assert {name: place.read(f"3/{name}") for name in FILES} == FILES
    assert place.contents("1") == before
    assert_sound(place)
    assert place.directory().prune(1) == [1, 2]
    assert place.directory().verify(3) == []


@pytest.mark.parametrize("name", [GRAPH, "variables/variables.index"])
def test_a_damaged_version_is_not_published(place: Place, name: str) -> None:
    export(place.store())
    content = place.read(f"1/{name}")
    place.put(f"1/{name}", content[:-1] + b"!")
    before = place.contents()
    for target in (place.directory(), ExportDirectory("elsewhere")):
        with pytest.raises(DamagedVersionError, match=rf"'{name}' has other contents"):
            target.publish(place.base / "1")
    place.delete(f"1/{name}")
    with pytest.raises(DamagedVersionError, match=rf"'{name}' is missing"):
        place.directory().publish(place.base / "1")
    place.put(f"1/{name}", content[:-1] + b"!")
    assert place.contents() == before


@pytest.mark.parametrize(
    ("policy", "removed"),
    [
        (KeepLatest(1), [1, 2, 3]),
        (KeepLatest(2) | KeepBest(1, "m", "max"), [1]),
        (KeepLatest(1) | KeepBest(1, monitor="loss", mode="min"), [1, 2, 3]),
    ],
    ids=repr,
)
def test_prune_removes_what_the_policy_does_not_keep(
    place: Place, policy: KeepLatest, removed: list[int]
) -> None:
    for value in (1.0, 3.0, 2.0, 0.0):
        export(place.store(), metrics={"m": value})
    place.put("9/other", b"not ours")
    directory = place.directory()
    assert directory.prune(policy) == removed
    left = sorted({1, 2, 3, 4, 9} - {*removed})
    assert directory.versions() == left
    assert directory.prune(policy) == []
    assert_nothing_is_left(place, left)


# Other writers.


@pytest.mark.parametrize("place", _SOME, indirect=True)
def test_no_version_appears_twice_and_none_is_lost_when_threads_publish(place: Place) -> None:
    together = threading.Barrier(4)

    def write(writer: int) -> list[int]:
        store = place.store()
        together.wait()
        return [
            export(store, FILES | {GRAPH: b"%d" % writer}, epoch=writer).version for _ in range(5)
        ]

    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(write, range(4)))
    assert all(versions == sorted(versions) for versions in taken)
    versions = sorted(itertools.chain(*taken))
    assert len(set(versions)) == 20
    assert place.directory().versions() == versions
    for writer, own in enumerate(taken):
        for version in own:
            assert place.read(f"{version}/{GRAPH}") == b"%d" % writer
            assert place.directory().record(version).epoch == writer
    assert_sound(place)


WRITE = """
import sys
import warnings
import pytest
from support.places import Place, export
from keras_export_callbacks import KeepBest, KeepLatest
from pathlib import Path
kind, writer, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
place = Place(kind, Path("base").absolute())
place.enter(pytest.MonkeyPatch())
if kind == "without rename":  # Two that delete the same files meet; the next writer ends it.
    warnings.filterwarnings("ignore", ".*could not be removed")
store, directory = place.store(), place.directory()
policy = KeepLatest(3) | KeepBest(1, "m", "max")
directory.versions()
print("ready", flush=True)
sys.stdin.readline()
for turn in range(count):
    value = float((turn * 37 + writer * 11) % 101)
    record = export(store, metrics={"m": value})
    print(record.version, value)
    directory.prune(policy)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "writers", "count"), [("local", 4, 50), ("without rename", 2, 20)]
)
def test_processes_publish_and_prune_in_one_directory(
    kind: str, writers: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(kind, Path("base").absolute())
    place.enter(monkeypatch)
    printed = run_together(WRITE, *([kind, str(writer), str(count)] for writer in range(writers)))
    lines = [[line.split() for line in each.splitlines()] for each in printed]
    taken = [[int(version) for version, _ in each] for each in lines]
    assert all(versions == sorted(versions) for versions in taken)
    versions = sorted(itertools.chain(*taken))
    assert versions == list(range(1, writers * count + 1))

    values = {int(version): float(value) for each in lines for version, value in each}
    best = min(values, key=lambda version: (-values[version], version))
    values[export(place.store(), metrics={"m": 0.0}).version] = 0.0
    directory = ExportDirectory("base")
    directory.prune(KeepLatest(3) | KeepBest(1, "m", "max"))
    assert directory.versions() == sorted({best, *sorted(values)[-3:]})
    assert {record.version: record.metrics for record in directory.records()} == {
        version: {"m": values[version]} for version in directory.versions()
    }
    assert all(directory.verify(version) == [] for version in directory.versions())
    assert sorted(os.listdir("base")) == sorted(map(str, directory.versions()))


# Writers that die.


@pytest.mark.parametrize("place", _SOME, indirect=True)
def test_a_writer_that_dies_at_any_step_of_a_commit_leaves_no_half_version(place: Place) -> None:
    numbers = [export(place.store()).version]
    appeared = []
    for _ in crashes(
        place, lambda: numbers.append(export(place.store()).version), lambda: assert_sound(place)
    ):
        appeared.append(len(place.directory().versions()) - sum(appeared) > 1)
    # At one step it appears, and not before.
    assert appeared == sorted(appeared)
    assert appeared.count(False) > 10
    versions = place.directory().versions()
    assert len(versions) == 2 + sum(appeared)
    assert versions[0] == 1
    assert versions[-1] == numbers[-1] == max(int(name) for name in place.store().names())
    assert_nothing_is_left(place, versions)
    assert os.listdir(tempfile.gettempdir()) == []


@pytest.mark.parametrize("place", _SOME, indirect=True)
def test_a_removal_that_dies_at_any_step_is_completed_by_the_next_writer(place: Place) -> None:
    for _ in range(2):
        export(place.store())
    newest = [2]
    for _ in crashes(place, lambda: place.directory().prune(1), lambda: assert_sound(place)):
        assert newest[-1] in place.directory().versions()
        while len(place.directory().versions()) < 2:
            newest.append(export(place.store()).version)
    assert newest[-1] > 2
    assert place.directory().versions() == newest[-1:]
    assert_nothing_is_left(place, newest[-1:])
    assert os.listdir(tempfile.gettempdir()) == []


def test_a_removal_is_seen_at_its_first_step_by_one_who_knew_the_version(place: Place) -> None:
    export(place.store())
    directory = place.directory()
    assert directory.versions() == [1]
    told = []

    def look() -> None:
        if any(".removed" in name for name in place.contents()):
            told.append((directory.versions(), directory.records()))

    with before_each_step(look):
        place.store().remove(1)
    assert all(seen == ([], []) for seen in told)
    assert bool(told) == (place.kind != "local")
    assert directory.versions() == []
