"""Places in buckets, and a server that a test may tell to misbehave."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from support import object_stores
from support.object_stores import SERVERS, Relay, Server
from support.places import Place, place_of

from keras_export_callbacks.archive.store.buckets import objects, store


@pytest.fixture(params=SERVERS)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty place on each kind of server, in requests that run side by side."""
    place = place_of(request.param)
    for name, value in SERVERS[request.param]().environment().items():
        monkeypatch.setenv(name, value)
    return place


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Let Ctrl-C interrupt this process, also where its parent has told it to ignore that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


@pytest.fixture
def relay(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """The way to S3, which can be cut."""
    relay = Relay(s3.port)
    for name, value in s3.environment(relay.port).items():
        monkeypatch.setenv(name, value)
    yield relay
    relay.cut()


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test asks its stores for the first time."""
    monkeypatch.setattr(store, "_probed", set())
    monkeypatch.setattr(objects, "_buckets", {})
