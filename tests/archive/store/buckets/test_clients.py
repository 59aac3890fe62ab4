"""Where the stores are, and who the user is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.object_stores import SERVERS, Server
from support.places import commit, place_of

from keras_export_callbacks.archive.store.store import open_store


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
