"""What only buckets do: other writers anywhere, requests that fail, answers that get lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import object_stores
from support.bucket_target import publish
from support.object_stores import SERVERS, Relay, Server
from support.places import Place, commit, export, patched, place_of
from support.processes import run_together, started
from support.versions import FILES, file_infos, write_files, write_version

from keras_export_callbacks import ExportDirectory, ExportError, KeepLatest
from keras_export_callbacks.archive.errors import DamagedVersionError, StorageError
from keras_export_callbacks.archive.store import bucket, claims, cloud
from keras_export_callbacks.archive.store.record import MANIFEST
from keras_export_callbacks.archive.store.store import open_store

GRAPH = "saved_model.pb"

# Other processes: see `support.bucket_target`.
TARGET = "import sys; from support.bucket_target import main; main(*sys.argv[1:])"

SLOW = pytest.mark.slow


@pytest.fixture(params=SERVERS)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty place on each kind of server, in requests that run side by side."""
    place = place_of(request.param)
    for name, value in SERVERS[request.param]().environment().items():
        monkeypatch.setenv(name, value)
    return place


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """S3, which a test may tell to misbehave."""
    server = object_stores.s3()
    server.reset()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    yield server
    server.reset()


@pytest.fixture
def url(s3: Server) -> str:
    """An empty base directory there."""
    return f"{s3.bucket()}/base"


def sweep(url: str) -> None:
    """Take every writer for dead, and sweep up what it left."""
    with patched(claims, LEASE=-1.0, STAGING_LEASE=-1.0):
        open_store(url).sweep()


def left(url: str) -> list[str]:
    """What lies there beside versions and gravestones."""
    found, key = cloud.bucket_at(url)
    versions = {str(version) for version in ExportDirectory(url).versions()}
    return [
        entry.key
        for entry in found.below(key)
        if entry.key.removeprefix(f"{key}/").partition("/")[0] not in versions
        and not (f"/{claims.CLAIMS}/" in entry.key and entry.size == 0)
    ]


# Other writers.


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
        self._bucket, self._key = cloud.bucket_at(url)
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


def frozen_at(step: str, name: str) -> Callable[..., Any]:
    """A method of `Bucket` that, once, lets others take its writer for dead before it goes on."""
    original = getattr(cloud.Bucket, step)
    is_first = True

    def act(self: cloud.Bucket, *args: Any) -> Any:
        nonlocal is_first
        if is_first and any(str(arg).endswith(name) for arg in args):
            is_first = False
            with patched(claims, LEASE=-1.0, STAGING_LEASE=-1.0):
                # As another writer does that comes then.
                export(open_store(f"{self.url}/base"), epoch=2)
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
    monkeypatch.setattr(cloud.Bucket, step, frozen_at(step, name))
    record = export(open_store(url), epoch=1)
    directory = ExportDirectory(url)
    others = [version for version in directory.versions() if version != record.version]
    assert len(others) == 1
    assert record.version > others[0]
    assert [directory.record(version).epoch for version in (others[0], record.version)] == [2, 1]
    assert [directory.verify(version) for version in directory.versions()] == [[], []]
    sweep(url)
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


def test_a_model_that_another_program_puts_there_is_left_alone(url: str) -> None:
    found, key = cloud.bucket_at(url)

    def intrude(version: int) -> None:
        if version == 1:
            found.put(f"{key}/1/{GRAPH}", b"theirs")

    assert commit(open_store(url), finish=intrude) == 2
    assert found.read(f"{key}/1/{GRAPH}")[0] == b"theirs"


# What others have put there.


HOSTILE = ["x//y", "7//saved_model.pb", "7/./f", "7/a/../b", "7/", "1/"]


@pytest.mark.parametrize("key", HOSTILE)
def test_keys_that_are_no_paths_do_not_hide_the_versions(s3: Server, url: str, key: str) -> None:
    export(open_store(url))
    put_raw(s3, f"{url}/{key}")
    directory = ExportDirectory(url)
    assert 1 in directory.versions()
    assert directory.record(1).version == 1
    assert export(open_store(url)).version in (2, 8)


def test_a_key_that_cannot_be_listed_is_told(s3: Server, url: str) -> None:
    put_raw(s3, f"{url}/./x")
    with pytest.raises(StorageError, match=r"cannot be listed: .*Remove or rename that object"):
        ExportDirectory(url).versions()


def put_raw(server: Server, url: str) -> None:
    """Write an object whose key no client of ours would take."""
    import boto3

    name, _, key = url.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=server.address)
    client.put_object(Bucket=name, Key=key, Body=b"")


# Requests that fail.


@pytest.mark.parametrize("kind", SERVERS)
def test_answers_that_get_lost_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "azure":
        pytest.skip("azurite runs in a process of its own")
    place = place_of(kind)
    place.enter(monkeypatch)
    server = SERVERS[kind]()
    commit(place.store())
    dice = random.Random(3)
    server.lose = lambda environ: dice.random() < 0.05
    try:
        numbers = [export(place.store()).version for _ in range(8)]
        place.directory().prune(KeepLatest(4))
    finally:
        server.reset()
    directory = place.directory()
    assert numbers == list(range(2, 10))
    assert directory.versions() == [1, 6, 7, 8, 9]
    assert all(directory.verify(version) == [] for version in range(6, 10))
    sweep(str(place.base))
    assert left(str(place.base)) == []


@pytest.fixture
def relay(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """The way to S3, which can be cut."""
    relay = Relay(s3.port)
    for name, value in s3.environment(relay.port).items():
        monkeypatch.setenv(name, value)
    yield relay
    relay.cut()


def test_a_short_outage_costs_only_time(relay: Relay, url: str) -> None:
    store = open_store(url)
    assert commit(store) == 1
    mending = threading.Timer(1.0, relay.mend)

    def cut(version: int) -> None:
        relay.cut()
        mending.start()

    assert commit(store, finish=cut) == 2
    assert sorted(store.versions()) == [1, 2]


def test_a_long_outage_is_told_and_publishes_nothing(
    relay: Relay, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "RETRY_SECONDS", 0.5)
    store = open_store(url)
    assert commit(store) == 1
    with pytest.raises(StorageError, match=rf"nobody answers at http://127.0.0.1:{relay.port}"):
        commit(store, finish=lambda version: relay.cut())
    relay.mend()
    assert sorted(store.versions()) == [1]
    with patched(claims, LEASE=-1.0, STAGING_LEASE=-1.0):
        assert commit(open_store(url)) == 3
    sweep(url)
    assert left(url) == []


# Mistakes.


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test asks its stores for the first time."""
    monkeypatch.setattr(bucket, "_probed", set())
    monkeypatch.setattr(cloud, "_buckets", {})


def told(act: Callable[[], object]) -> str:
    """The error, which is one line, and not a long one."""
    with pytest.raises(ExportError) as raised:
        act()
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def test_a_store_that_ignores_conditions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    server = object_stores.careless()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    url = f"{server.bucket()}/base"
    text = told(open_store(url).check)
    assert "does not honour conditional writes" in text
    assert open_store(url).files() == []


def test_stores_that_honour_conditions_are_asked_once(place: Place) -> None:
    place.store().check()
    assert place.contents() == {}
    place.store().check()
    assert len(bucket._probed) == 1


def test_nobody_listens(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    text = told(open_store("s3://somewhere/base").check)
    assert text.startswith("Cannot write 's3://somewhere/base/.staging/probe-")
    assert text.endswith("nobody answers at http://127.0.0.1:9.")


def test_a_server_says_nothing(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_stores.silent() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        text = told(open_store("s3://somewhere/base").check)
    assert "accepted the connection and did not answer" in text


def test_a_silent_server_can_be_interrupted(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with object_stores.silent() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        store = open_store("s3://somewhere/base")
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            store.check()


def test_there_is_no_such_bucket(place: Place) -> None:
    wrong = str(place.base).replace("://", "://no")
    for act in (open_store(wrong).check, ExportDirectory(wrong).versions):
        assert "There is no bucket '" in told(act)


@pytest.mark.parametrize(
    ("method", "what"), [("PUT", "write"), ("GET", "read"), ("POST", "delete")]
)
def test_something_is_not_permitted(s3: Server, url: str, method: str, what: str) -> None:
    denied = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    s3.before = lambda environ: (
        ("403 Forbidden", denied) if environ["REQUEST_METHOD"] == method else None
    )
    text = told(open_store(url).check)
    assert f"Cannot {what} '{url}" in text
    assert "403 Forbidden (AccessDenied: Access Denied)" in text
    assert text.endswith("what they permit: list, get, put and delete.")


def test_listing_is_not_permitted(s3: Server, url: str) -> None:
    s3.before = lambda environ: (
        ("403 Forbidden", b"") if "list-type" in environ["QUERY_STRING"] else None
    )
    assert f"Cannot list '{url}" in told(open_store(url).check)
    assert f"Cannot list '{url}" in told(ExportDirectory(url).versions)


@pytest.mark.parametrize(
    ("scheme", "variable"), [("s3", "AWS_"), ("gs", "GOOGLE_"), ("az", "AZURE_")]
)
def test_there_are_no_credentials(
    scheme: str, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [
        name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_", "STOR"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cloud, "FIRST_ANSWER_SECONDS", 6.0)
    text = told(open_store(f"{scheme}://somewhere/base").check)
    assert f"'{scheme}://somewhere/base/" in text


def test_the_extra_is_not_installed(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    text = told(lambda: open_store("s3://somewhere/base"))
    assert text.endswith("pip install 'keras-export-callbacks[cloud]'")


@pytest.mark.parametrize("url", ["hdfs://host/base", "ram://base", "file:///base", "S3://b/x"])
def test_other_schemes_are_to_be_mounted(url: str) -> None:
    text = told(lambda: ExportDirectory(url))
    assert text.startswith(f"Received '{url}'. Expected a local or mounted directory, or a URL")


@pytest.mark.parametrize("url", ["s3://", "s3:///base", "s3://b//x", "s3://b/../x", "s3://b/a\nb"])
def test_urls_that_name_no_place(url: str) -> None:
    assert "Expected 's3://bucket/prefix'" in told(lambda: ExportDirectory(url))


def test_a_forked_child_is_refused(url: str) -> None:
    store = open_store(url)
    commit(store)
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                store.versions()
            except StorageError as error:
                code = 0 if "forked" in str(error) else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert commit(store) == 2


# Where the stores are, and who we are.


def test_a_connection_string_of_azure(monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_of("azure")
    settings = SERVERS["azure"]().environment()
    for name in settings:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        "DefaultEndpointsProtocol=http"
        f";AccountName={settings['AZURE_STORAGE_ACCOUNT_NAME']}"
        f";AccountKey={settings['AZURE_STORAGE_ACCOUNT_KEY']}"
        f";BlobEndpoint={settings['AZURE_STORAGE_ENDPOINT']};",
    )
    assert commit(place.store()) == 1


def test_a_profile_of_boto3(s3: Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    Path("credentials").write_text(
        "[training]\naws_access_key_id = profile\naws_secret_access_key = secret\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.path.abspath("credentials"))
    monkeypatch.setenv("AWS_PROFILE", "training")
    said: list[str] = []
    s3.before = lambda environ: said.append(environ.get("HTTP_AUTHORIZATION", ""))  # type: ignore[func-returns-value]
    assert commit(open_store(url)) == 1
    assert all("Credential=profile/" in each for each in said)


# Bytes that need not be sent.


def test_what_is_unchanged_is_copied_inside_the_store(place: Place) -> None:
    store = place.store()
    frozen, server = os.urandom(300_000), SERVERS[place.kind]()
    sent = []
    for turn in range(3):
        before = server.sent
        export(store, FILES | {"variables/frozen": frozen, "new": b"%d" % turn})
        sent.append(server.sent - before)
    if place.kind != "azure":  # Nobody counts there.
        assert sent[0] > 300_000
        assert max(sent[1:]) < 30_000
    assert [place.directory().verify(version) for version in (1, 2, 3)] == [[], [], []]
    place.store().remove(1)
    assert [place.directory().verify(version) for version in (2, 3)] == [[], []]


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_what_somebody_touched_is_sent_again(s3: Server, url: str, change: str) -> None:
    store = open_store(url)
    frozen = os.urandom(1000)
    export(store, FILES | {"frozen": frozen})
    found, key = cloud.bucket_at(url)
    if change == "replaced":
        found.put(f"{key}/1/frozen", os.urandom(1000))
    else:
        open_store(url).remove(1)
    version = export(store, FILES | {"frozen": frozen}).version
    assert ExportDirectory(url).verify(version) == []


def test_a_store_that_cannot_copy_is_sent_everything(s3: Server, url: str) -> None:
    s3.before = lambda environ: (
        ("501 Not Implemented", b"") if "HTTP_X_AMZ_COPY_SOURCE" in environ else None
    )
    with patched(cloud, RETRY_SECONDS=0.0):
        assert export(open_store(url)).version == 1
    assert ExportDirectory(url).verify(1) == []


# Copies of versions.


def test_a_version_is_downloaded(place: Place) -> None:
    export(place.store(), FILES | {"variables/large": os.urandom(cloud.PART + 1)})
    directory = place.directory()
    Path("empty").mkdir()
    for to in ("new/and/deep", "empty"):
        path = directory.download(1, to)
        assert path == Path(to).absolute()
        copied = {
            each.relative_to(path).as_posix(): each.read_bytes()
            for each in path.rglob("*")
            if each.is_file()
        }
        assert copied == place.contents("1")
    assert sorted(os.listdir()) == ["empty", "new"]


def test_what_is_downloaded_is_compared(url: str) -> None:
    export(open_store(url))
    found, key = cloud.bucket_at(url)
    found.put(f"{key}/1/{GRAPH}", b"other")
    with pytest.raises(DamagedVersionError, match=f"'{GRAPH}' has other contents"):
        ExportDirectory(url).download(1, "copy")
    found.delete([f"{key}/1/{GRAPH}"])
    with pytest.raises(DamagedVersionError, match=f"'{GRAPH}' is missing"):
        ExportDirectory(url).download(1, "copy")
    assert os.listdir() == []


def test_nothing_is_downloaded_over_something(url: str) -> None:
    export(open_store(url))
    Path("full/of").mkdir(parents=True)
    Path("file").touch()
    for to in ("full", "file"):
        with pytest.raises(ExportError, match=f"Received to='.*{to}', where there is something"):
            ExportDirectory(url).download(1, to)
    assert ExportDirectory(url).download(1, "full/of") == Path("full/of").absolute()


def test_a_downloaded_local_version_shares_no_bytes() -> None:
    write_version(Path("base"), 1)
    copied = ExportDirectory("base").download(1, "copy")
    (copied / GRAPH).write_bytes(b"edited")
    assert ExportDirectory("base").verify(1) == []


def test_versions_go_from_bucket_to_bucket(place: Place, s3: Server, url: str) -> None:
    export(place.store(), reason="moved")
    place_url = str(place.base / "1")
    assert ExportDirectory(url).publish(place_url).reason == "moved"
    assert ExportDirectory(url).publish(f"{url}/1").version == 2
    assert [ExportDirectory(url).verify(version) for version in (1, 2)] == [[], []]


def test_what_a_killed_writer_staged_here_is_removed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    abandoned = tmp_path / "keras-export-0" / ".staging" / "writer"
    abandoned.mkdir(parents=True)
    (abandoned / "large").write_bytes(b"weights")
    commit(open_store(url))
    assert not abandoned.parents[1].exists()


def test_many_manifests_are_read_side_by_side(s3: Server, url: str) -> None:
    for _ in range(3):
        export(open_store(url))
    directory = ExportDirectory(url)
    s3.requests.clear()
    assert [record.version for record in directory.records()] == [1, 2, 3]
    assert s3.requests == {"GET": 5}  # One counts the versions, one lists all files.
    assert [record.version for record in directory.records()] == [1, 2, 3]
    assert s3.requests == {"GET": 6}


@pytest.mark.parametrize("kind", SERVERS)
def test_many_versions_are_looked_at_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_MANY", 2)
    place = place_of(kind)
    place.enter(monkeypatch)
    for _ in range(4):
        export(place.store())
    place.store().remove(4)
    found, key = cloud.bucket_at(str(place.base))
    found.create(f"{key}/{claims.CLAIMS}/6", b"writing")
    place.put("6/file", b"")
    directory = place.directory()
    for _ in range(2):
        assert directory.versions() == [1, 2, 3]
        assert [record.version for record in directory.records()] == [1, 2, 3]
    place.put(f"2/{MANIFEST}", b"{")
    assert [record.version for record in directory.records()] == [1, 3]


def test_a_file_is_one_request(s3: Server, url: str) -> None:
    with open_store(url).stage() as staged:
        write_files(staged)
        infos = file_infos(FILES)
        assert open_store(url).commit(staged, lambda version: None, infos) == 1
    s3.requests.clear()
    assert b"".join(open_store(url).at("1").blocks(GRAPH)) == FILES[GRAPH]
    assert s3.requests == {"GET": 1}
