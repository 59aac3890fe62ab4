"""What a user can ask of a base directory, and what others may have put there."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.versions import (
    FILES,
    a_record,
    file_infos,
    rewrite_manifest,
    tree,
    write_version,
)

from keras_export_callbacks import (
    ExportDirectory,
    ExportError,
    ExportRecord,
    KeepBest,
    KeepLatest,
)
from keras_export_callbacks.archive.errors import (
    DamagedVersionError,
    ExportTypeError,
    NewerVersionError,
    StorageError,
    VersionNotFoundError,
)
from keras_export_callbacks.archive.store import directory as directory_module
from keras_export_callbacks.archive.store.local import LocalFiles
from keras_export_callbacks.archive.store.record import MANIFEST
from keras_export_callbacks.archive.store.staging import STAGING

BASE = Path("base")
SOURCE = Path("trials", "trial_0", "3")


@pytest.fixture
def base() -> ExportDirectory:
    """A base directory with the versions 1, 2 and 3."""
    for version in (1, 2, 3):
        write_version(BASE, version, metrics={"m": float(version % 3)})
    return ExportDirectory(BASE)


@pytest.fixture
def source() -> Path:
    """A version somewhere else."""
    return write_version(SOURCE.parent, 3, metrics={"m": 0.5}, trial="0")


def test_only_canonical_directories_are_versions_but_no_taken_number_is_given_out(
    base: ExportDirectory, source: Path
) -> None:
    Path(BASE, "11").write_text("a file")
    for name in ("007", "+12", " 13", "-20", os.fsdecode(b"\xff"), os.fsdecode(b"21\xff")):
        Path(BASE, name).mkdir()
    Path(BASE, "14").symlink_to(source.resolve())
    assert base.versions() == [1, 2, 3]
    assert base.publish(source).version == 15
    assert base.prune(1) == [1, 2, 3]


def test_a_linked_version_is_not_ours(base: ExportDirectory, source: Path) -> None:
    elsewhere = write_version(Path("elsewhere"), 9)
    Path(BASE, "9").symlink_to(elsewhere.resolve())
    before = tree(Path("elsewhere"))
    assert base.versions() == [1, 2, 3]
    for ask in (base.record, base.verify):
        with pytest.raises(
            VersionNotFoundError, match=r"no version 9 in '.*base'. It holds 1, 2, 3"
        ):
            ask(9)
    with pytest.raises(VersionNotFoundError, match="no version 9"):
        ExportDirectory("other").publish(BASE / "9")
    assert base.prune(1) == [1, 2]
    assert tree(Path("elsewhere")) == before
    assert Path(BASE, "9").is_symlink()


def test_the_base_directory_itself_may_be_a_link(base: ExportDirectory, source: Path) -> None:
    Path("served").symlink_to(BASE.resolve())
    served = ExportDirectory("served")
    assert served.versions() == [1, 2, 3]
    assert served.publish(source).path == Path("served", "4").absolute()
    assert base.versions() == [1, 2, 3, 4]


def test_a_file_is_no_base_directory(source: Path) -> None:
    Path("file").write_text("")
    for path in ("file", "file/base"):
        directory = ExportDirectory(path)
        with pytest.raises(ExportError, match=f"/{path}' cannot be read: .*Not a directory"):
            directory.versions()
        with pytest.raises(ExportError, match=f"='.*/{path}', but '.*/file' is not a d"):
            directory.publish(source)


def without_manifest(version: Path) -> None:
    (version / MANIFEST).unlink()


def with_a_damaged_one(version: Path) -> None:
    (version / MANIFEST).write_text("{")


def with_a_file_in_its_place(version: Path) -> None:
    (version / "assets.extra").rename("moved")
    (version / "assets.extra").write_text("")


@pytest.mark.parametrize("damage", [without_manifest, with_a_damaged_one, with_a_file_in_its_place])
def test_what_has_no_readable_manifest_is_told_and_left_alone(
    base: ExportDirectory, damage: Callable[[Path], None]
) -> None:
    damage(BASE / "1")
    assert base.versions() == [1, 2, 3]
    assert [record.version for record in base.records()] == [2, 3]
    with pytest.raises(DamagedVersionError) as raised:
        base.record(1)
    assert base.verify(1) == [str(raised.value).removesuffix(".")]
    assert base.prune(1) == [2]
    assert base.versions() == [1, 3]


def test_manifests_are_read_again_only_when_they_were_replaced(
    base: ExportDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = directory_module.read_record
    monkeypatch.setattr(
        directory_module,
        "read_record",
        lambda files: read.append(files.root.name) or real(files),
    )
    first = base.records()
    assert base.records() == first
    assert read == ["1", "2", "3"]
    replaced = BASE / "2" / MANIFEST
    replaced.rename("old")
    replaced.write_text(a_record(2, reason="replaced").to_json())
    assert [record.reason for record in base.records()] == ["requested", "replaced", "requested"]
    assert read == ["1", "2", "3", "2"]
    assert base.prune(1) == [1, 2]
    assert [record.version for record in base.records()] == [3]


def test_a_manifest_that_was_written_over_in_place_is_read_again(base: ExportDirectory) -> None:
    path = BASE / "2" / MANIFEST
    first = base.records()
    content = path.read_text()
    path.write_text(content.replace('"requested"', '"REQUESTED"'))  # As long as before.
    assert [record.reason for record in base.records()] == ["requested", "REQUESTED", "requested"]
    path.write_text("{")
    for _ in range(2):
        records, damage = base.survey()
        assert [record.version for record in records] == [1, 3]
        assert len(damage) == 1
    path.write_text(content)
    assert base.records() == first


def test_versions_that_come_and_go_are_seen_by_one_who_knows_the_others(
    base: ExportDirectory,
) -> None:
    assert base.versions() == [1, 2, 3]
    (BASE / "2").rename("moved")
    assert [record.version for record in base.records()] == [1, 3]
    Path("moved").rename(BASE / "2")
    write_version(BASE, 4)
    assert [record.version for record in base.records()] == [1, 2, 3, 4]
    (BASE / "2").rename("moved")
    (BASE / "2").symlink_to(Path("moved").resolve())
    assert base.versions() == [1, 3, 4]
    assert [record.version for record in base.records()] == [1, 3, 4]
    shutil.rmtree(BASE / "1")
    (BASE / "1").mkdir()
    assert base.versions() == [3, 4]


NEWER = (
    r"A later version of this library wrote '.*{}'\. Its manifest has schema 2, but the installed "
    "library knows schema 1"
)


def test_unknown_keys_in_entries_do_not_hide_the_best(base: ExportDirectory) -> None:
    files = {name: {"size": 1, "sha256": "", "mtime": 2**64} for name in FILES}
    rewrite_manifest(BASE / "2", files=files)
    best = base.best("m", "max")
    assert best is not None
    assert best.version == 2
    assert base.prune(KeepLatest(1) | KeepBest(1, monitor="m", mode="max")) == [1]


def test_a_newer_manifest_is_told_once(base: ExportDirectory) -> None:
    rewrite_manifest(BASE / "2", schema=2)
    with pytest.warns(UserWarning, match=NEWER.format(2) + r"\. This directory is not") as told:
        best = base.best("m", "max")
    assert len(told) == 1
    assert best is not None
    assert (best.version, best.schema) == (2, 2)
    assert base.record(2) == best
    latest = base.latest()
    assert latest is not None
    assert latest.version == 3
    with pytest.warns(UserWarning, match=NEWER.format(2)):
        ExportDirectory(BASE).record(2)


def test_a_newer_manifest_without_metrics_is_told_to_be_beaten(base: ExportDirectory) -> None:
    rewrite_manifest(BASE / "2", schema=2, metrics=[["m", 2.0]], epoch="3")
    with pytest.warns(UserWarning, match=r"Not read: epoch, metrics\. A worse version may be"):
        best = base.best("m", "max")
    assert best is not None
    assert best.version == 1


@pytest.mark.parametrize("changes", [{}, {"metrics": 1}, {"created": 5, "files": []}])
def test_a_newer_version_is_never_removed(base: ExportDirectory, changes: dict[str, Any]) -> None:
    rewrite_manifest(BASE / "1", schema=3, **changes)
    with pytest.warns(UserWarning, match="This directory is not removed"):
        assert base.prune(1) == [2]
    assert base.versions() == [1, 3]


def test_a_newer_version_is_verified_by_the_digests_that_can_be_read(base: ExportDirectory) -> None:
    rewrite_manifest(BASE / "1", schema=2, novelty=1)
    rewrite_manifest(BASE / "2", schema=2, files={"saved_model.pb": {"blake3": ""}})
    assert base.verify(1) == []
    flip(BASE / "1")
    assert base.verify(1) == ["'saved_model.pb' has other contents than were published"]
    (problem,) = base.verify(2)
    assert re.search(r"cannot be verified: a later version.*\(schema 2\). Upgrade", problem)


def test_a_newer_version_is_not_copied(base: ExportDirectory) -> None:
    rewrite_manifest(BASE / "1", schema=2)
    before = tree(BASE)
    with pytest.raises(NewerVersionError, match=r"1' cannot be published: .*schema 2, but the"):
        base.publish(BASE / "1")
    assert tree(BASE) == before


def test_prune_spares_the_best_it_was_exported_for(base: ExportDirectory) -> None:
    write_version(BASE, 4, monitor="val_loss", mode="min", value=0.5)
    write_version(BASE, 5, monitor="val_loss", mode="min", value=0.75)
    write_version(BASE, 6)
    assert base.prune(1) == [1, 2, 3, 5]


def test_prune_goes_on_where_another_writer_was_first(
    base: ExportDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = base.records()
    monkeypatch.setattr(base, "records", lambda: records)
    assert ExportDirectory(BASE).prune(2) == [1]
    assert base.prune(1) == [2]
    assert base.versions() == [3]


def test_prune_tells_what_could_not_be_removed_and_goes_on(
    base: ExportDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def rename(old: Any, new: Any) -> None:
        if Path(old) == BASE.absolute() / "1":
            raise PermissionError(1, "Operation not permitted", str(old))
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.warns(UserWarning, match=r"Version 1 in '.*/base' could not be removed.*permitted"):
        assert base.prune(1) == [2]
    assert base.versions() == [1, 3]


@pytest.mark.parametrize("can_link", [True, False])
def test_publish_makes_the_next_version_with_the_same_files(
    base: ExportDirectory, source: Path, monkeypatch: pytest.MonkeyPatch, can_link: bool
) -> None:
    if not can_link:
        monkeypatch.delattr(os, "link")
        monkeypatch.setattr(os, "link", _refuse, raising=False)
    before = tree(source)
    record = base.publish(source)
    assert record.path == BASE.absolute() / "4"
    original = ExportDirectory(source.parent).record(3)
    assert record == replace(
        original,
        path=record.path,
        version=4,
        created=record.created,
        copied_from=str(source.absolute()),
    )
    assert record.created > original.created
    assert base.record(4) == record
    assert base.verify(4) == []
    assert tree(source) == before
    assert {name: (BASE / "4" / name).read_bytes() for name in FILES} == FILES
    assert not (BASE / STAGING).exists()


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise OSError("Operation not supported")


def test_publish_makes_the_base_directory(source: Path) -> None:
    assert ExportDirectory("new/base").publish(f"{source}/").version == 1


def without_a_graph(version: Path) -> None:
    files = {name: content for name, content in FILES.items() if name != "saved_model.pb"}
    write_version(version.parent, int(version.name), files=file_infos(files))
    (version / "saved_model.pb").unlink()


def flip(version: Path) -> None:
    (version / "saved_model.pb").write_bytes(b"A graph")


def add_a_link(version: Path) -> None:
    (version / "secret").symlink_to("/etc/passwd")


def put_a_link(version: Path) -> None:
    (version / "saved_model.pb").unlink()
    (version / "saved_model.pb").symlink_to("/etc/passwd")


def put_a_pipe(version: Path) -> None:
    (version / "saved_model.pb").unlink()
    os.mkfifo(version / "saved_model.pb")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_manifest, "has no 'assets.extra/export.json'"),
        (with_a_damaged_one, "export.json' cannot be used"),
        (without_a_graph, "'saved_model.pb' is missing"),
        (flip, "'saved_model.pb' has other contents"),
        (add_a_link, "'secret' was added"),
        (put_a_link, "'saved_model.pb' is not a regular file"),
        (put_a_pipe, "'saved_model.pb' is not a regular file"),
    ],
)
def test_a_damaged_source_is_refused(
    base: ExportDirectory, source: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(source)
    before = tree(BASE)
    with pytest.raises(DamagedVersionError, match=message):
        base.publish(source)
    assert tree(BASE) == before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("trials", r"trials' has no 'assets.*There are versions in '.*/trials/trial_0'\.$"),
        ("trials/trial_0", r"a base directory, which holds 3\. .* such as '.*/trial_0/3'\.$"),
        ("trials/best", r"There is no directory '.*/trials/best'\. Expected a version, such as"),
        ("trials/007", "There is no directory '.*/trials/007'"),
        ("a_file", "There is no directory '.*/a_file'"),
        (
            "trials/7",
            r"There is no version 7 in '.*/trials'\. It holds no versions\. There are ver",
        ),
        ("runs/2024", r"a base directory, which holds 1\. .* such as '.*/runs/2024/1'\.$"),
        ("trials/trial_0/3/variables", r"has no 'assets.extra/export.json'\. .*copy of one\.$"),
    ],
)
def test_a_source_is_a_version_or_a_copy_of_one(
    base: ExportDirectory, source: Path, path: str, message: str
) -> None:
    write_version(Path("runs/2024"), 1)
    Path("a_file").touch()
    before = tree(BASE)
    with pytest.raises(VersionNotFoundError, match=message):
        base.publish(path)
    assert tree(BASE) == before


@pytest.mark.parametrize("version", ["2", 2.0, True, Path("2"), a_record(2)])
def test_a_version_is_named_by_an_int(base: ExportDirectory, version: Any) -> None:
    asked: list[Callable[[], Any]] = [
        lambda: base.record(version),
        lambda: base.verify(version),
        lambda: base.rollback(version),
        lambda: base.download(version, "copy"),
    ]
    before = tree(BASE)
    for ask in asked:
        with pytest.raises(ExportTypeError, match=r"version=.* of type .*an int such as 2\.$"):
            ask()
    assert tree(BASE) == before


def test_a_policy_is_an_int_or_a_policy(base: ExportDirectory) -> None:
    with pytest.raises(ExportTypeError, match="Received policy='3'"):
        base.prune("3")  # type: ignore[arg-type]


def test_the_number_of_a_version_may_be_one_of_numpy(base: ExportDirectory) -> None:
    version = np.int64(2)
    assert base.record(version).version == 2
    assert base.verify(version) == []
    assert base.rollback(version).copied_from == "2"


@pytest.mark.parametrize("wrong", [None, 5, b"base/1"])
def test_a_path_is_a_text_or_a_path(base: ExportDirectory, wrong: Any) -> None:
    with pytest.raises(ExportTypeError, match="Received source_version_path="):
        base.publish(wrong)
    for use in (ExportDirectory, lambda path: base.download(1, path)):
        with pytest.raises(ExportTypeError, match="Expected a directory, as a str or Path"):
            use(wrong)


def test_a_message_names_where_the_versions_are() -> None:
    for trial in range(4):
        write_version(Path(f"trials/{trial}-of-4/.hidden/more"), 1)
        write_version(Path(f"trials/trial_{trial}/execution_0"), 1)
    Path("trials/a_file").touch()
    named = ", ".join(f"'.*/trials/trial_{trial}/execution_0'" for trial in range(3))
    for ask in (lambda: ExportDirectory("trials").rollback(), lambda: _ask("trials")):
        with pytest.raises(VersionNotFoundError, match=rf" There are versions in {named}, …\.$"):
            ask()


def _ask(base_dir: str) -> ExportRecord:
    return ExportDirectory(base_dir).record(1)


def test_a_source_exists(base: ExportDirectory, source: Path) -> None:
    with pytest.raises(VersionNotFoundError, match=r"no version 4 in .*trial_0'. It holds 3"):
        base.publish(source.with_name("4"))


def test_a_source_that_goes_away_meanwhile_is_told(
    base: ExportDirectory, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LocalFiles.fetch

    def fetch(files: LocalFiles, name: str, target: Path) -> None:
        shutil.rmtree(source, ignore_errors=True)  # As another writer prunes.
        original(files, name, target)

    monkeypatch.setattr(LocalFiles, "fetch", fetch)
    before = tree(BASE)
    with pytest.raises(DamagedVersionError, match=rf"'.*{source}' cannot be published: .* missing"):
        base.publish(source)
    assert tree(BASE) == before


@pytest.fixture(scope="module")
def touched() -> Iterator[list[str]]:
    """The paths that this process opens, links or moves."""
    paths: list[str] = []
    is_on = True

    def note(event: str, args: tuple[Any, ...]) -> None:
        if is_on and event in ("open", "os.link", "os.rename", "shutil.copyfile"):
            paths.extend(str(arg) for arg in args[:2] if isinstance(arg, str | os.PathLike))

    sys.addaudithook(note)  # For good: it cannot be taken back, only told to be still.
    yield paths
    is_on = False


OUTSIDE = ["../../../secret", "{here}/secret", "variables/../../../../secret", "..", ".", "", "/"]


@pytest.mark.parametrize("name", [*OUTSIDE, "secret\0"])
def test_no_manifest_reaches_out_of_its_version(
    base: ExportDirectory, source: Path, touched: list[str], name: str
) -> None:
    secret = Path("secret")
    secret.write_bytes(b"secret")
    name = name.format(here=Path.cwd())
    # The digest is right, so that only the name speaks against it.
    infos = file_infos(FILES) | {name: file_infos({"": b"secret"})[""]}
    (source / MANIFEST).write_text(a_record(3, files=infos).to_json())
    before = tree(Path.cwd())
    touched.clear()
    with pytest.raises(DamagedVersionError, match="is missing"):
        base.publish(source)
    assert not any("secret" in path for path in touched)
    assert any("saved_model.pb" in path for path in touched)
    assert tree(Path.cwd()) == before


def test_refused_by_the_system_is_an_error_of_ours(
    base: ExportDirectory, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Any, *args: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(os, "mkdir", full)
    for ask in (lambda: base.publish(source), lambda: base.prune(1)):
        with pytest.raises(StorageError, match=r"/base' cannot be written: .*No space") as seen:
            ask()
        assert isinstance(seen.value, OSError)
    assert base.versions() == [1, 2, 3]


def test_a_rollback_publishes_an_older_version_and_withdraws_what_came_after(
    base: ExportDirectory,
) -> None:
    assert base.best("m", "max") == base.record(2)
    first = base.rollback()
    assert (first.version, first.copied_from, first.withdrawn) == (4, "2", (3,))
    assert base.verify(4) == []
    second = base.rollback()
    assert (second.version, second.copied_from, second.withdrawn) == (5, "1", (2, 3, 4))
    assert base.best("m", "max") == base.record(1)
    assert ExportDirectory(BASE).best("m", "max") == base.record(1)
    with pytest.raises(VersionNotFoundError, match=r"from version 5\. To publish one that was"):
        base.rollback()
    back = base.rollback(4)  # Which is a copy of 2.
    assert (back.version, back.copied_from, back.withdrawn) == (6, "4", (3, 5))
    assert base.best("m", "max") == back
    with pytest.raises(ExportError, match="Version 6 is already the newest"):
        base.rollback(6)
    with pytest.raises(VersionNotFoundError, match="There is no version 9"):
        base.rollback(9)
    with pytest.raises(VersionNotFoundError, match="There are no versions"):
        ExportDirectory("empty").rollback()


def test_a_copy_says_where_it_came_from(base: ExportDirectory, source: Path) -> None:
    assert base.publish(source).copied_from == str(source.absolute())
    assert base.publish(BASE / "1").copied_from == "1"
    assert base.record(1).copied_from is None
    content = json.loads(Path(BASE, "1", MANIFEST).read_text())
    assert not {"copied_from", "withdrawn"} & content.keys()


def test_a_manifest_that_lies_about_its_origin_misleads_no_rollback(base: ExportDirectory) -> None:
    rewrite_manifest(BASE / "3", copied_from="3", withdrawn=[3, 9])
    rewrite_manifest(BASE / "2", copied_from="3")
    assert base.rollback().copied_from == "2"
