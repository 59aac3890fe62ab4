"""Mistakes, each told in one line before anything is published."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import object_stores
from support.buckets import told
from support.object_stores import Server
from support.places import Place

from keras_export_callbacks import ExportDirectory
from keras_export_callbacks.archive.store.buckets import objects
from keras_export_callbacks.archive.store.buckets.failures import advice
from keras_export_callbacks.archive.store.store import open_store


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


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_there_are_no_credentials(
    scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [
        name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_", "STOR"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(objects, "FIRST_ANSWER_SECONDS", 6.0)
    text = told(open_store(f"{scheme}://somewhere/base").check)
    assert f"'{scheme}://somewhere/base/" in text


@pytest.mark.parametrize(
    ("scheme", "variable", "said"),
    [
        ("s3", "AWS_ACCESS_KEY_ID", "http://169.254.169.254/latest/api/token"),
        ("gs", "GOOGLE_APPLICATION_CREDENTIALS", "http://metadata.google.internal/token"),
        ("az", "AZURE_STORAGE_ACCOUNT_KEY", "Account must be specified"),
    ],
)
def test_the_variables_of_the_store_alone_are_named(scheme: str, variable: str, said: str) -> None:
    text = advice(OSError(said), scheme)
    assert variable in text
    assert [name for name in ("AWS_", "GOOGLE_", "AZURE_") if name in text] == [
        variable.partition("_")[0] + "_"
    ]
