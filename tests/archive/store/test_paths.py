"""What may be a base directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from keras_export_callbacks import ExportArchive, ExportDirectory, ExportError
from keras_export_callbacks.archive.store.local import check_directory

BASE = Path("base")


@pytest.mark.parametrize("path", ["base", "new/and/deeper", ".", "linked"])
def test_a_base_directory_exists_or_can_be_made(path: str) -> None:
    BASE.mkdir()
    Path("linked").symlink_to(BASE)
    check_directory(Path(path))
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("path", "at"), [("file", "file"), ("file/base", "file"), ("dangling", "dangling")]
)
def test_a_base_directory_is_a_directory(path: str, at: str) -> None:
    Path("file").write_text("")
    Path("dangling").symlink_to("nowhere")
    with pytest.raises(ExportError, match=f"base_dir='{path}', but '{at}' is not a directory"):
        check_directory(Path(path))


def test_an_archive_is_written_to_local_directories_only() -> None:
    with pytest.raises(ExportError, match=r"'ram://artifact'.*not on a local file system"):
        ExportArchive().write_out("ram://artifact")


@pytest.mark.parametrize("url", ["s3://bucket/served", "gs://bucket", "az://box/x"])
def test_a_path_of_a_url_is_no_directory(url: str) -> None:
    with pytest.raises(ExportError, match=r"Expected the URL of a bucket as a string"):
        ExportDirectory(Path(url))
