"""Each writer has a directory of its own in `.staging`, and dead ones leave nothing there."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import run_together, started
from support.versions import tree, write_files, write_version

from keras_export_callbacks import ExportDirectory
from keras_export_callbacks.archive.errors import StorageError
from keras_export_callbacks.archive.store.staging import STAGING, Workspace, sweep, workspace
from keras_export_callbacks.archive.store.store import open_store

BASE = Path("base")


def a_staged_version(space: Workspace) -> Path:
    staged = space.stage()
    write_files(staged)
    return staged


def first_time(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Callable[..., Any]:
    """Decorate a function to be called, once, with the real one in place of `module.name`."""

    def decorate(interlude: Callable[..., Any]) -> None:
        real = getattr(module, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            monkeypatch.setattr(module, name, real)
            result = interlude(real, *args, **kwargs)
            if result is NotImplemented:  # Not the call that is meant.
                monkeypatch.setattr(module, name, patched)
                return real(*args, **kwargs)
            return result

        monkeypatch.setattr(module, name, patched)

    return decorate


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def test_staging_removed_by_a_writer_that_ends_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @first_time(monkeypatch, os, "mkdir")
    def interlude(mkdir: Any, path: Any, *args: Any) -> Any:
        if Path(path).name != STAGING:
            return NotImplemented
        mkdir(path, *args)
        return os.rmdir(path)

    with workspace(BASE) as space:
        assert space.stage().is_dir()


def test_a_workspace_swept_before_it_was_locked_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @first_time(monkeypatch, os, "mkdir")
    def interlude(mkdir: Any, path: Any, *args: Any) -> Any:
        if Path(path).parent.name != STAGING:
            return NotImplemented
        mkdir(path, *args)
        return sweep(BASE)

    before = open_descriptors()
    with workspace(BASE) as space:
        assert space.stage().is_dir()
    assert open_descriptors() == before


def test_a_workspace_swept_while_it_waited_for_the_lock_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @first_time(monkeypatch, fcntl, "flock")
    def interlude(flock: Any, descriptor: int, how: int) -> None:
        sweep(BASE)
        flock(descriptor, how)

    before = open_descriptors()
    with workspace(BASE) as space:
        assert space.stage().is_dir()
    assert open_descriptors() == before


def test_a_workspace_closed_under_the_sweeper_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = Workspace(BASE)

    @first_time(monkeypatch, fcntl, "flock")
    def interlude(flock: Any, descriptor: int, how: int) -> None:
        space.close()
        flock(descriptor, how)

    sweep(BASE)  # A warning would be an error here.
    assert os.listdir(BASE) == []


def test_staging_removed_under_the_sweeper_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    space = Workspace(BASE)

    @first_time(monkeypatch, os, "listdir")
    def interlude(listdir: Any, path: Any) -> Any:
        space.close()
        return listdir(path)

    sweep(BASE)
    assert os.listdir(BASE) == []


OPEN_AND_CLOSE = """
import sys
from pathlib import Path
from keras_export_callbacks.archive.store.staging import workspace
print("ready", flush=True)
sys.stdin.readline()
for _ in range(300):
    with workspace(Path("base")) as space:
        (space.stage() / "file").write_text("")
"""


@pytest.mark.slow
def test_writers_come_and_go_without_hurting_each_other() -> None:
    run_together(OPEN_AND_CLOSE, [], [], [], [])
    assert os.listdir(BASE) == []


HOLD = """
import os, sys
from pathlib import Path
from keras_export_callbacks.archive.store.staging import Workspace
space = Workspace(Path("base"))
(space.stage() / "file").write_text("unfinished")
if sys.argv[1:] == ["fork"] and os.fork():
    os.wait()
print("ready", flush=True)
sys.stdin.read()
"""


DIE_IN_FINISH = """
import os, signal
from pathlib import Path
from keras_export_callbacks.archive.store.store import open_store
from support.versions import write_files
store = open_store("base")
with store.stage() as staged:
    write_files(staged)
    store.commit(staged, lambda version: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
@pytest.mark.parametrize("args", [[], ["fork"]], ids=["alone", "its forked child lives on"])
def test_what_a_live_writer_uses_is_kept_and_what_a_killed_one_left_is_swept(
    args: list[str],
) -> None:
    with started(HOLD, *args) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        before = tree(BASE)
        Workspace(BASE).close()
        assert tree(BASE) == before
        assert b"unfinished" in before.values()
        process.kill()
        process.wait()
        # The child, if there is one, lives until its standard input is closed.
        Workspace(BASE).close()
        assert os.listdir(BASE) == []


@pytest.mark.slow
def test_a_writer_killed_while_it_publishes_publishes_nothing_and_locks_no_one_out() -> None:
    with started(DIE_IN_FINISH) as process:
        assert process.wait() == -9
    assert ExportDirectory(BASE).versions() == []
    assert b"a graph" in tree(BASE).values()
    with workspace(BASE) as space:
        assert open_store(BASE).commit(a_staged_version(space), lambda version: None) == 1
    assert os.listdir(BASE) == ["1"]


def test_only_workspaces_are_swept() -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/file").write_text("precious")
    (BASE / STAGING).mkdir(parents=True)
    (BASE / STAGING / "link").symlink_to(Path("elsewhere").resolve())
    (BASE / STAGING / "file").write_text("")
    (BASE / STAGING / "abandoned").mkdir()
    Workspace(BASE).close()
    assert sorted(os.listdir(BASE / STAGING)) == ["file", "link"]
    assert Path("elsewhere/file").read_text() == "precious"


def test_what_cannot_be_swept_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def resist(path: Any, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    (BASE / STAGING / "abandoned").mkdir(parents=True)
    monkeypatch.setattr(shutil, "rmtree", resist)
    message = r"Could not remove the abandoned directory '.*': .*not permitted"
    with pytest.warns(UserWarning, match=message):
        sweep(BASE)


def test_a_linked_staging_directory_is_not_followed() -> None:
    version = write_version(BASE, 1)
    write_version(BASE, 2)
    write_files(Path("elsewhere"), {"abandoned/file": b"precious"})
    (BASE / STAGING).symlink_to(Path("elsewhere").resolve())
    before = tree(Path.cwd())
    sweep(BASE)
    for attempt in (
        lambda: Workspace(BASE),
        lambda: ExportDirectory(BASE).publish(version),
        lambda: ExportDirectory(BASE).prune(1),
    ):
        with pytest.raises(StorageError, match=r"base/.staging' is a symbolic link.* Remove it"):
            attempt()
    assert tree(Path.cwd()) == before


def test_a_file_named_as_the_staging_directory_is_told() -> None:
    version = write_version(BASE, 1)
    (BASE / STAGING).write_text("")
    with pytest.raises(StorageError, match=r"/base' cannot be written: .*Not a directory"):
        ExportDirectory(BASE).publish(version)


def test_an_empty_directory_may_be_swept_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, mkdir, swept = tmp_path / "base", Path.mkdir, []

    def sweep_first(path: Path, *args: Any, **options: Any) -> None:
        if path == base and not swept:
            swept.append(path)
            raise FileExistsError(path)  # It was there, and is gone now.
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", sweep_first)
    with workspace(base) as space:
        assert space.stage().is_dir()
    assert swept == [base]


def test_a_file_in_the_place_of_the_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "base").touch()
    with pytest.raises(OSError, match="base"):
        Workspace(tmp_path / "base")
