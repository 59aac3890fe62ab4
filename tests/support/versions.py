"""Write versions by hand as the engine publishes them, without TensorFlow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keras_export_callbacks.archive.store.files import FileInfo, KnownFile
from keras_export_callbacks.archive.store.record import (
    MANIFEST,
    MANIFEST_DIGEST,
    EndpointInfo,
    ExportRecord,
    TensorInfo,
    manifest_digest,
)

FILES = MappingProxyType(
    {
        "saved_model.pb": b"a graph",
        "fingerprint.pb": b"a fingerprint",
        "variables/variables.index": b"an index",
        "variables/variables.data-00000-of-00001": bytes(range(256)),
        "assets/vocabulary.txt": b"",
        "assets.extra/variables.json": b"{}",
    }
)


def a_record(version: int = 1, **fields: Any) -> ExportRecord:
    """Return a plausible record of version `version`, with some fields replaced."""
    record = ExportRecord(
        path=Path("base", str(version)),
        version=version,
        created="2024-05-06T07:08:09.123+00:00",
        epoch=0,
        step=10,
        reason="requested",
        monitor=None,
        mode=None,
        value=None,
        metrics={},
        endpoints={
            "serve": EndpointInfo(
                inputs={"x": TensorInfo((None, 3), "float32")},
                outputs={"output_0": TensorInfo(None, "float32")},
            )
        },
        collections={"optimizer_variables": 2},
        bytes=sum(map(len, FILES.values())),
        graph_reused=False,
        stall_seconds=0.25,
        write_seconds=0.5,
        libraries={"keras": "3.8.0"},
        files=file_infos(FILES),
    )
    return replace(record, **fields)


def file_infos(files: Mapping[str, bytes]) -> dict[str, FileInfo]:
    """Return what a manifest says about files with these contents."""
    return {
        name: FileInfo(len(content), hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    }


def write_files(directory: Path, files: Mapping[str, bytes] = FILES) -> None:
    """Write files by relative path."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_version(base_dir: Path, version: int, **fields: Any) -> Path:
    """Put a version with a valid manifest into `base_dir`, and return its directory."""
    path = base_dir / str(version)
    write_files(path)
    content = a_record(version, **fields).to_json().encode()
    (path / MANIFEST).write_bytes(content)
    (path / MANIFEST_DIGEST).write_bytes(manifest_digest(content))
    return path


def rewrite_manifest(version_dir: Path, **changes: Any) -> None:
    """Change values in a version's manifest, as another version of this library would."""
    content = json.loads((version_dir / MANIFEST).read_text()) | changes
    text = json.dumps(content).encode()
    (version_dir / MANIFEST).write_bytes(text)
    (version_dir / MANIFEST_DIGEST).write_bytes(manifest_digest(text))


def tree(directory: Path) -> dict[str, bytes | str | None]:
    """Return everything below `directory`: contents of files, targets of links, else None."""
    return {
        path.relative_to(directory).as_posix(): (
            str(path.readlink())
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
        for path in sorted(directory.rglob("*"))
    }


def sign(version: Path, name: str, without: Sequence[str] = ()) -> None:
    """Update a file in the manifest to its contents now, and remove the files in `without`."""
    manifest = version / MANIFEST
    content = json.loads(manifest.read_text())
    content["files"][name] = vars(KnownFile.at(version / name).info)
    for gone in without:
        del content["files"][gone]
    manifest.write_text(json.dumps(content))
    (version / MANIFEST_DIGEST).write_bytes(manifest_digest(manifest.read_bytes()))
