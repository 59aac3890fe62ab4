"""Local directories: one rename, locks, and what others may have put there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import run_python
from support.versions import FILES, tree, write_files, write_version

from keras_export_callbacks import ExportDirectory
from keras_export_callbacks.archive.store.staging import STAGING, Workspace, workspace
from keras_export_callbacks.archive.store.store import open_store

BASE = Path("base")


def a_staged_version(space: Workspace) -> Path:
    staged = space.stage()
    write_files(staged)
    return staged


def test_a_version_appears_complete_and_staging_goes_away() -> None:
    seen: list[Any] = []

    def finish(version: int) -> None:
        seen.append((version, os.listdir(BASE)))
        (staged / "last").write_text(str(version))

    with workspace(BASE) as space:
        staged = a_staged_version(space)
        assert open_store(BASE).commit(staged, finish) == 1
    assert seen == [(1, [STAGING])]
    assert tree(BASE / "1").keys() == {*FILES, "last", "assets", "assets.extra", "variables"}
    assert os.listdir(BASE) == ["1"]


def test_everything_is_on_the_disk_before_the_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    names: dict[tuple[int, int], str] = {}

    def noting(name: str, path_of: Callable[..., Path]) -> None:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            done.append((name, path_of(*args).name))
            return real(*args)

        monkeypatch.setattr(os, name, call)

    def path_of_descriptor(descriptor: int) -> Path:
        status = os.fstat(descriptor)
        return Path(names.get((status.st_dev, status.st_ino), "?"))

    with workspace(BASE) as space:
        staged = a_staged_version(space)
        for path in [BASE, staged, *staged.rglob("*")]:
            status = path.stat()
            names[status.st_dev, status.st_ino] = path.name
        noting("fsync", path_of_descriptor)
        noting("rename", lambda old, new: Path(new))
        open_store(BASE).commit(staged, lambda version: done.append(("finish", str(version))))
    contents = {("fsync", path.name) for path in [BASE / "1", *(BASE / "1").rglob("*")]}
    contents = contents - {("fsync", "1")} | {("fsync", staged.name)}
    finish = done.index(("finish", "1"))
    assert set(done[:finish]) == contents
    assert done[finish + 1 :] == [("rename", "1"), ("fsync", "base")]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_permissions_follow_the_umask(umask: int) -> None:
    write_version(Path("source"), 1)
    before = os.umask(umask)
    try:
        path = ExportDirectory(BASE).publish("source/1").path
    finally:
        os.umask(before)
    for directory in (BASE, path, path / "variables", path / "assets.extra"):
        assert directory.stat().st_mode & 0o777 == 0o777 & ~umask
    assert (path / "assets.extra" / "export.json").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_removed_version_is_gone_even_if_its_files_resist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resist(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    write_version(BASE, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", resist)
        patch.setattr(os, "remove", resist)
        open_store(BASE).remove(1)
    assert ExportDirectory(BASE).versions() == []
    assert (BASE / STAGING).exists()
    Workspace(BASE).close()
    assert os.listdir(BASE) == []


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
def test_what_another_put_there_meanwhile_is_not_overwritten(kind: str) -> None:
    asked: list[int] = []

    def finish(version: int) -> None:
        asked.append(version)
        path = BASE / str(version)
        if len(asked) > 1:
            return
        if kind == "file":
            path.write_text("theirs")
        elif kind == "directory":
            write_files(path, {"theirs": b""})
        else:
            path.symlink_to(Path.cwd() if kind == "link" else "nowhere")
        theirs.update(tree(BASE / "1") if kind == "directory" else {"": None})

    theirs: dict[str, Any] = {}
    with workspace(BASE) as space:
        assert open_store(BASE).commit(a_staged_version(space), finish) == 2
    assert asked == [1, 2]
    if kind == "directory":
        assert tree(BASE / "1") == theirs
    else:
        assert not (BASE / "1" / "saved_model.pb").exists()


def test_no_one_else_takes_a_number_while_one_is_finished() -> None:
    def finish(version: int) -> None:
        descriptor = os.open(BASE, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)

    with workspace(BASE) as space:
        open_store(BASE).commit(a_staged_version(space), finish)


def test_a_file_system_without_locks_is_used_with_care(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*args: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    asked: list[int] = []

    def finish(version: int) -> None:
        asked.append(version)
        if version == 1:  # Another writer publishes, since nothing keeps it out.
            with workspace(BASE) as other:
                open_store(BASE).commit(a_staged_version(other), lambda version: None)

    with workspace(BASE) as space:
        staged = a_staged_version(space)
        assert open_store(BASE).commit(staged, finish) == 2
    assert asked == [1, 2]
    assert {*tree(BASE / "1")} == {*tree(BASE / "2")} > FILES.keys()


READ_ONLY = """
import os
from pathlib import Path
import pytest
from keras_export_callbacks import ExportDirectory, ExportError
from keras_export_callbacks.archive.store.local import check_directory
if os.geteuid() == 0:  # Who may write anywhere.
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for path in ("base", "base/new", "closed/new"):
    with pytest.raises(ExportError, match=f"base_dir='{path}', but '.*' is not writable"):
        check_directory(Path(path))
with pytest.raises(ExportError, match="/base' is not writable"):
    ExportDirectory("base").publish("base/1")
with pytest.raises(ExportError, match="/base' cannot be written: .*Permission denied"):
    ExportDirectory("base").prune(1)
with pytest.raises(ExportError, match="/closed' cannot be read: .*Permission denied"):
    ExportDirectory("closed").versions()
"""


FULL = """
import resource
import pytest
from keras_export_callbacks import ExportDirectory, ExportError
# No file may grow beyond this: the files of a version are shared, its manifest is too long.
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with pytest.raises(ExportError, match="/base' cannot be written: .*File too large"):
    ExportDirectory("base").publish("base/1")
"""


@pytest.mark.slow
def test_a_read_only_base_directory_is_told() -> None:
    write_version(BASE, 1)
    write_version(BASE, 2)
    Path("closed").mkdir()
    before = tree(Path.cwd())
    # What pytest makes is for its own user, who is not root any more in the script.
    above = [path for path in Path.cwd().parents if "pytest-of-" in str(path)]
    for path in (*above, Path.cwd()):
        path.chmod(0o755)
    BASE.chmod(0o555)
    Path("closed").chmod(0o000)
    try:
        run_python(READ_ONLY)
    finally:
        BASE.chmod(0o755)
        Path("closed").chmod(0o755)
    assert tree(Path.cwd()) == before


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_nothing_behind() -> None:
    write_version(BASE, 1)
    before = tree(BASE)
    run_python(FULL)
    assert tree(BASE) == before
