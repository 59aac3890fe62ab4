"""Whenever a model server looks, all it finds is complete: it may look between any two steps."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from support.models import classifier, data
from support.serving_oracle import discovered, version_number
from support.versions import write_files, write_version

from keras_export_callbacks import ExportDirectory, ExportEveryN, ExportOnImprove
from keras_export_callbacks.archive.store.record import MANIFEST
from keras_export_callbacks.archive.store.verify import version_problems

BASE = Path("base")

# What Python does to a file system, as it announces it to audit hooks before it does it,
# and which of the arguments are paths that it changes.
_STEPS = {
    "open": (0,),
    "os.mkdir": (0,),
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "shutil.rmtree": (),
    "fcntl.flock": (),
}

# What it does not announce, or what TensorFlow does.
_CALLS = ("fsync", "save", "SaveV2", "MergeV2Checkpoints")


class Server:
    """Looks at a base directory as a model server does, and remembers what was wrong there.

    Attributes:
        steps: the kinds of steps that it looked before.
        newest: the newest version each time that it was another one.
        problems: what it found that cannot be served.
    """

    def __init__(self, base_dir: Path) -> None:
        self._base_dir = base_dir.absolute()
        self.steps: set[str] = set()
        self.newest: list[str] = []
        self.problems: list[str] = []

    def look(self, step: str, changed: list[Path] | None = None) -> None:
        self.steps.add(step)
        found = discovered(self._base_dir)
        for version in found:
            self.problems += [f"before {step}: {problem}" for problem in problems_of(version)]
        for path in changed or []:
            if set(path.parents) & set(found):
                self.problems.append(f"{step} of '{path}', in a version that is served")
        if found and self.newest[-1:] != [found[-1].name]:
            self.newest.append(found[-1].name)


def problems_of(version: Path) -> list[str]:
    missing = [] if (version / "saved_model.pb").is_file() else [f"'{version}' has no graph"]
    return [*missing, *version_problems(version)]


_watching: list[Server] = []


def _announced(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event not in _STEPS:
        return
    if event == "open" and not _is_for_writing(arguments[2]):
        return
    paths = [arguments[index] for index in _STEPS[event]]
    _watching[0].look(event, [Path(os.fsdecode(p)).absolute() for p in paths if not _is_open(p)])


def _is_for_writing(flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def _is_open(path: Any) -> bool:
    """Whether it is a descriptor, of a file whose opening was announced."""
    return isinstance(path, int)


# For good: a hook cannot be removed.
sys.addaudithook(_announced)


@contextlib.contextmanager
def watched(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that looks before each step within a ``with`` block, and at its end."""
    server = Server(base_dir)

    def looking(step: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            server.look(step)
            try:
                return real(*args, **kwargs)
            finally:
                server.look(step)

        return call

    with monkeypatch.context() as patch:
        # Not looked up before: Keras's own export makes `tf.saved_model` another module.
        owners = (os, tf.saved_model, tf.raw_ops, tf.raw_ops)
        for owner, name in zip(owners, _CALLS, strict=True):
            patch.setattr(owner, name, looking(name, getattr(owner, name)))
        _watching.append(server)
        try:
            yield server
        finally:
            _watching.clear()
    server.look("nothing")


def fit(callback: Any, epochs: int) -> None:
    classifier(jit_compile=False).fit(*data(), epochs=epochs, verbose=0, callbacks=[callback])


# What is looked at must not change meanwhile, so the training thread writes.


def test_at_every_step_of_exports_and_removals(monkeypatch: pytest.MonkeyPatch) -> None:
    callback = ExportEveryN(BASE, keep=2, log_dir=None, background=False)
    with watched(BASE, monkeypatch) as server:
        fit(callback, epochs=4)
        # Another model: traced and saved as a whole once more.
        fit(callback, epochs=1)
    assert server.problems == []
    assert server.newest == ["1", "2", "3", "4", "5"]
    assert ExportDirectory(BASE).versions() == [4, 5]
    assert server.steps >= {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir"}
    assert server.steps >= {"shutil.rmtree", "fcntl.flock", *_CALLS}


@pytest.mark.filterwarnings("ignore:Version .* has other inputs or outputs")
def test_at_every_step_over_what_a_dead_writer_left(monkeypatch: pytest.MonkeyPatch) -> None:
    write_version(BASE, 7)
    write_files(BASE / ".staging" / "abandoned" / "8")
    write_files(BASE / ".staging" / "9")
    callback = ExportOnImprove(BASE, "loss", log_dir=None, background=False)
    with watched(BASE, monkeypatch) as server:
        fit(callback, epochs=1)
    assert server.problems == []
    assert server.newest == ["7", "8"]
    assert sorted(os.listdir(BASE)) == ["7", "8"]


@pytest.mark.parametrize("links", [True, False], ids=["linked", "copied"])
def test_at_every_step_of_a_publish_and_a_prune(
    links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*args: Any, **kwargs: Any) -> None:
        raise OSError(1, "Operation not permitted")

    source = write_version(Path("source"), 3)
    directory = ExportDirectory(BASE)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with watched(BASE, monkeypatch) as server:
        for _ in range(3):
            directory.publish(source)
        assert directory.prune(1) == [1, 2]
    assert server.problems == []
    assert server.newest == ["1", "2", "3"]
    assert ("os.link" in server.steps) == links


# The server itself.


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("7", 7), ("007", 7), (" 7\t", 7), ("+7", 7), ("-7", -7), ("\v-0\n", 0),
        (str(2**63 - 1), 2**63 - 1), (str(-(2**63)), -(2**63)), (str(2**63), None),
        ("", None), (" ", None), ("-", None), ("--7", None), ("- 7", None), ("7.", None),
        ("1_000", None), ("0x7", None), ("٧", None), ("7\xa0", None), (".staging", None),
    ],
)  # fmt: skip
def test_a_server_takes_every_int64_for_a_version(name: str, number: int | None) -> None:
    assert version_number(name) == number


def test_a_server_finds_files_and_empty_directories_too() -> None:
    assert discovered(BASE) == []
    for name in ("10", "9", "-3", " 8 ", ".11", "tmp"):
        (BASE / name).mkdir(parents=True)
    (BASE / "12").write_text("")
    assert [path.name for path in discovered(BASE)] == ["-3", " 8 ", "9", "10", "12"]


def written_in_place() -> None:
    write_version(BASE, 1)


def without_its_manifest_at_first() -> None:
    write_version(Path("staged"), 1)
    BASE.mkdir()
    (Path("staged", "1") / MANIFEST).rename("manifest")
    Path("staged", "1").rename(BASE / "1")
    Path("manifest").rename(BASE / "1" / MANIFEST)


def removed_in_place() -> None:
    write_version(Path("staged"), 1)
    Path("staged").rename(BASE)
    shutil.rmtree(BASE / "1")


def touched_up_afterwards() -> None:
    write_version(Path("staged"), 1)
    Path("staged").rename(BASE)
    path = BASE / "1" / MANIFEST
    path.write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    "careless",
    [written_in_place, without_its_manifest_at_first, removed_in_place, touched_up_afterwards],
)
def test_a_server_sees_what_a_careless_writer_does(
    careless: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(BASE, monkeypatch) as server:
        careless()
    assert server.problems != []
    assert [problems_of(version) for version in discovered(BASE)] in ([], [[]])
