"""``keras-exports``, as it is called from a shell."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.command_line import BASE, run, write_versions
from support.processes import run_python
from support.versions import (
    rewrite_manifest,
    tree,
    write_version,
)

from keras_export_callbacks import ExportDirectory
from keras_export_callbacks.archive.store.record import MANIFEST
from keras_export_callbacks.cli import main


@pytest.fixture(autouse=True)
def versions() -> None:
    write_versions()


def test_a_command_leaves_the_garbage_collector_as_it_was() -> None:
    run("list", BASE)
    assert gc.isenabled()
    gc.disable()
    try:
        run("list", BASE)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_list_as_json() -> None:
    listed = json.loads(run("list", BASE, "--json").stdout)
    assert [item["version"] for item in listed] == [1, 2, 3]
    assert listed[0]["path"] == str(BASE.absolute() / "1")
    assert listed[0]["metrics"] == {"loss": 0.5}


def test_a_version_without_a_readable_manifest_is_in_the_json_as_it_is_in_the_table() -> None:
    (BASE / "1" / MANIFEST).unlink()
    (BASE / "2" / MANIFEST).write_text("{")
    listed = json.loads(run("list", BASE, "--json").stdout)
    assert [item["version"] for item in listed] == [1, 2, 3]
    assert "has no 'assets.extra/export.json'" in listed[0]["error"]
    assert "cannot be used" in listed[1]["error"]
    assert listed[1]["path"] == str(BASE.absolute() / "2")
    assert "error" not in listed[2]
    for version in (1, 2, 3):
        (BASE / str(version) / MANIFEST).write_text("{")
    for args in (["best"], ["prune", "--keep-best", 1]):
        assert "No version in" in run(*args, BASE, code=1).stderr
        assert "has a readable manifest" in run(*args, BASE, code=1).stderr


def test_the_json_of_a_copy_tells_its_origin_as_a_number_or_a_path() -> None:
    run("publish", BASE / "1", BASE)
    run("publish", BASE / "1", "served")
    assert json.loads(run("show", BASE, "--json").stdout)["copied_from"] == 1
    (copy,) = json.loads(run("list", "served", "--json").stdout)
    assert copy["copied_from"] == str(BASE.absolute() / "1")


def test_verify() -> None:
    assert run("verify", BASE).stdout.splitlines() == ["1: ok", "2: ok", "3: ok"]
    (BASE / "2" / "saved_model.pb").write_bytes(b"other")
    assert "2: 'saved_model.pb' has 5 bytes" in run("verify", BASE, code=1).stdout
    assert run("verify", BASE, 3).stdout == "3: ok\n"
    found = json.loads(run("verify", BASE, "--json", code=1).stdout)
    assert [item["version"] for item in found] == [1, 2, 3]
    assert [len(item["problems"]) for item in found] == [0, 1, 0]


def test_best() -> None:
    assert run("best", BASE, "--monitor", "loss", "--mode", "min").stdout == "2\n"
    failed = run("best", BASE, "--monitor", "nothing", "--mode", "min", code=1)
    assert failed.stderr.startswith("Error: No version in")


def test_prune() -> None:
    removed = run(
        "prune", BASE, "--keep-latest", 1, "--keep-best", 1, "--monitor", "loss", "--mode", "min"
    )
    assert removed.stdout == "Removed 1.\n"
    assert ExportDirectory(BASE).versions() == [2, 3]
    assert run("prune", BASE, "--keep-latest", 5).stdout == "Removed nothing.\n"


def test_publish_and_roll_back() -> None:
    assert run("publish", BASE / "2", "served").stdout.strip() == str(Path("served/1").absolute())
    said = f"Published version 2 again as '{BASE.absolute() / '4'}'. Withdrew 3.\n"
    assert run("rollback", BASE).stdout == said
    assert ExportDirectory(BASE).record(4).metrics == {"loss": 0.25}
    # Not to the one that was taken back.
    assert json.loads(run("rollback", BASE, "--json").stdout) == {
        "path": str(BASE.absolute() / "5"),
        "version": 5,
        "copied_from": 1,
        "withdrawn": [2, 3, 4],
    }
    assert ExportDirectory(BASE).record(5).metrics == {"loss": 0.5}
    assert "no version to go back to" in run("rollback", BASE, code=1).stderr
    assert "newest in" in run("rollback", BASE, 5, code=1).stderr
    run("rollback", BASE, 3)
    assert ExportDirectory(BASE).record(6).metrics == {"loss": 0.75}
    assert run("verify", BASE).exit_code == 0
    assert "no version to go back to" in run("rollback", "served", code=1).stderr


def test_what_does_not_verify_is_not_published() -> None:
    (BASE / "1" / "saved_model.pb").write_bytes(b"other")
    before = tree(BASE)
    assert "saved_model.pb" in run("publish", BASE / "1", BASE, code=1).stderr
    assert "saved_model.pb" in run("rollback", BASE, 1, code=1).stderr
    assert tree(BASE) == before
    (BASE / "2" / "saved_model.pb").write_bytes(b"other")
    assert "Pass the version to go back to, instead of 2." in run("rollback", BASE, code=1).stderr


def test_what_is_published_but_cannot_be_printed_is_done() -> None:
    command = [sys.executable, "-m", "keras_export_callbacks", "rollback", BASE]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr.count("\n")) == (0, 1)
    assert re.search("Published as '.*/base/4', which cannot be printed", ran.stderr)
    assert ExportDirectory(BASE).versions() == [1, 2, 3, 4]


def test_serving_config() -> None:
    printed = run("serving-config", BASE, "--label", "stable=2", "--label", "canary=3").stdout
    config_pb2 = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    config = text_format.Parse(printed, config_pb2.ModelServerConfig()).model_config_list.config[0]
    assert (config.name, config.base_path) == ("base", str(BASE.absolute()))
    assert list(config.model_version_policy.specific.versions) == [2, 3]
    assert dict(config.version_labels) == {"stable": 2, "canary": 3}
    run("serving-config", BASE, "--label", "stable=9", code=1)
    odd = 'ü"\\\n😀'
    printed = run("serving-config", BASE, "--name", odd, "--label", f"{odd}=2").stdout
    config = text_format.Parse(printed, config_pb2.ModelServerConfig()).model_config_list.config[0]
    assert (config.name, dict(config.version_labels)) == (odd, {odd: 2})


@pytest.mark.parametrize(
    "args",
    [
        ["list", "nowhere"],
        ["list"],
        ["show", BASE, "one"],
        ["prune", BASE],
        ["prune", BASE, "--keep-latest", 0],
        ["prune", BASE, "--keep-best", 1, "--monitor", "acc"],
        ["best", BASE, "--monitor", "acc"],
        ["best", BASE, "--monitor", "loss", "--mode", "most"],
        ["serving-config", BASE, "--label", "stable"],
        ["serving-config", BASE, "--name", ""],
        ["serving-config", BASE, "--name", "\udcff"],
        ["publish", "b*", BASE],
        ["publish", BASE / "1", "b*"],
        ["diff", BASE, 1],
        ["diff", BASE, 1, "two"],
        ["diff", BASE, 1, BASE],
        ["download", BASE / "1"],
        ["unknown"],
        ["--unknown"],
        ["list", BASE, "more"],
    ],
)
def test_wrong_usage_is_told_in_one_line(args: list[Any]) -> None:
    before = tree(BASE)
    error = run(*args, code=2).stderr
    assert error.startswith("Error: ")
    assert re.search(r"[^.]\. Try 'main( [a-z-]+)? --help'\.\n$", error)
    assert error.count("\n") == 1
    assert tree(BASE) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["show", BASE, 9], "no version 9 in '.*/base'. It holds 1, 2, 3."),
        (["show", BASE / "9"], "no version 9 in '.*/base'. It holds 1, 2, 3."),
        (["verify", BASE, 9], "no version 9"),
        (["verify", BASE / "9"], "no version 9"),
        (["rollback", BASE, 9], "no version 9"),
        (["diff", BASE, 1, BASE / "9"], "no version 9"),
        (["download", BASE / "9", "copy"], "no version 9"),
        (["publish", BASE / "9", BASE], "no version 9"),
        (["publish", "a/1", BASE], "no version 1 in '.*/a'. It holds no versions."),
        (["publish", "a", BASE], "There is no directory '.*/a'. Expected a version, such as"),
        (["publish", BASE, BASE], "base' is a base directory.* such as '.*/base/3'."),
        (["publish", BASE / "1/variables", BASE], "has no 'assets.extra/export.json'. Expected a"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(args: list[Any], message: str) -> None:
    error = run(*args, code=1).stderr
    assert re.match(f"Error: .*{message}", error)
    assert error.count("\n") == 1


def test_a_damaged_manifest_is_told() -> None:
    (BASE / "3" / MANIFEST).write_text("{}")
    assert "cannot be used" in run("show", BASE, code=1).stderr
    assert run("list", BASE).stdout.splitlines()[-2].split()[0] == "3"


class TestOfANewerVersion:
    """What a later version of this library has written."""

    @pytest.fixture(autouse=True)
    def newer(self) -> None:
        rewrite_manifest(BASE / "2", schema=2, reason=["improved"])

    def test_its_schema_is_told_in_one_line(self) -> None:
        for command in ("list", "show"):
            ran = run(command, BASE, *([2] if command == "show" else []))
            assert ran.stderr.startswith("Warning: A later version of this library wrote")
            assert ran.stderr.count("\n") == 1
            assert "schema" in ran.stdout
        assert re.search(r"^2 .* schema 2 +loss=0.25", run("list", BASE).stdout, re.MULTILINE)
        assert re.search(r"^schema +2, newer than", run("show", BASE, 2).stdout, re.MULTILINE)
        assert json.loads(run("show", BASE, 2, "--json").stdout)["schema"] == 2

    def test_it_counts_and_stays(self) -> None:
        assert run("best", BASE, "--monitor", "loss", "--mode", "min").stdout == "2\n"
        assert run("prune", BASE, "--keep-latest", 1).stdout == "Removed 1.\n"
        assert run("verify", BASE, 2).stdout == "2: ok\n"

    def test_no_copy_of_it_is_published(self) -> None:
        error = run("rollback", BASE, code=1).stderr
        assert re.search(r"\nError: .*2' cannot be published: a later .*instead of 2\.$", error)
        error = run("publish", BASE / "2", BASE, code=1).stderr
        assert "Upgrade keras-export-callbacks" in error
        assert run("rollback", BASE, 1).stdout.endswith("/4'. Withdrew 2, 3.\n")


def test_the_command_is_installed_and_imports_no_tensorflow() -> None:
    script = f"""
import sys
from keras_export_callbacks.cli import main
try:
    main(["list", {str(BASE)!r}])
except SystemExit as end:
    assert end.code == 0
assert not {{"tensorflow", "keras", "numpy"}} & sys.modules.keys()
"""
    assert "loss=0.25" in run_python(script)
    assert (Path(sys.executable).parent / "keras-exports").exists()


def test_paths_are_not_obeyed_by_the_terminal() -> None:
    write_version(Path("\x1b]0;\x07"), 1)
    write_version(Path("\x1b]0;\x07"), 2, step=2)
    said = run("rollback", "\x1b]0;\x07").stdout + run("show", "\x1b]0;\x07", 9, code=1).stderr
    assert "\x1b" not in said


def test_a_reader_that_leaves_is_no_error() -> None:
    for version in range(4, 500):
        (BASE / str(version)).mkdir()
        (BASE / str(version) / "theirs").touch()
    command = [sys.executable, "-m", "keras_export_callbacks", "list", BASE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("show base ", ["plain,1", "plain,2", "plain,3"]),
        ("rollback base 2", ["plain,2"]),
        ("diff base ", ["plain,1", "plain,2", "plain,3"]),
        ("diff base/1 ", ["plain,1", "plain,2", "plain,3"]),
        ("download base 3", ["plain,3"]),
        ("download base/3 ba", ["file,ba"]),
        ("show nowhere ", []),
        ("list ba", ["dir,ba"]),
        ("publish ba", ["dir,ba"]),
    ],
)
def test_completion(typed: str, completed: list[str]) -> None:
    asked = {
        "_KERAS_EXPORTS_COMPLETE": "bash_complete",
        "COMP_WORDS": f"keras-exports {typed}",
        "COMP_CWORD": str(len(typed.split(" "))),
    }
    result = CliRunner(env=asked).invoke(main, prog_name="keras-exports")
    assert result.stdout.split() == completed


def test_an_empty_directory_has_no_versions() -> None:
    Path("empty").mkdir()
    assert "There are no versions in" in run("verify", "empty", code=1).stderr
    listed = run("list", "empty")
    assert len(listed.stdout.splitlines()) == 1
    assert listed.stderr == f"There are no versions in '{Path('empty').absolute()}'.\n"
    listed = run("list", "empty", "--json")
    assert listed.stdout == "[]\n"
    assert listed.stderr.startswith("There are no versions in")
    metric = ["--monitor", "loss", "--mode", "min"]
    for args in (
        ["best"],
        ["best", *metric],
        ["prune", "--keep-best", 1],
        ["prune", "--keep-best", 1, *metric],
        ["prune", "--keep-latest", 1],
        ["prune", "--keep-latest", 1, "--dry-run"],
        ["rollback"],
        ["show"],
    ):
        error = run(*args, "empty", code=1).stderr
        assert error == f"Error: There are no versions in '{Path('empty').absolute()}'.\n"


def test_a_metric_that_no_version_has_removes_nothing() -> None:
    best = ["--keep-best", 1, "--monitor", "losss", "--mode", "min"]
    assert "has the metric 'losss'" in run("prune", BASE, *best, code=1).stderr
    assert ExportDirectory(BASE).versions() == [1, 2, 3]


@pytest.mark.parametrize("inside", ["2", "2/variables", ".staging", ".staging/more"])
def test_nothing_is_published_into_a_version(inside: str) -> None:
    before = tree(BASE)
    assert "a directory outside of it" in run("publish", BASE / "1", BASE / inside, code=1).stderr
    assert tree(BASE) == before


def on_a_terminal(*args: str) -> tuple[str, str]:
    """What a command prints, and all that a terminal shows."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "keras_export_callbacks", *args]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=end) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # The other end is closed.
            while part := os.read(terminal, 4096):
                shown += part
        assert process.stdout is not None
        printed = process.stdout.read().decode()
    os.close(terminal)
    return printed, shown.decode()


def test_a_terminal_shows_how_many_bytes_are_done() -> None:
    printed, shown = on_a_terminal("verify", "base")
    assert printed == "1: ok\n2: ok\n3: ok\n"
    assert "286/286 bytes" in shown
    assert re.search("Version 1.*Version 2.*Version 3", shown, re.DOTALL)
    assert shown.endswith("\x1b[2K")  # The bar is erased.
    printed, shown = on_a_terminal("download", "base", "2", "copy")
    assert printed == f"{Path('copy').absolute()}\n"
    assert "Version 2" in shown
    (BASE / "2" / MANIFEST).write_text("{")
    printed, shown = on_a_terminal("verify", "base", "2")
    assert printed.startswith("2: ")
    assert "Version 2" in shown


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["list", "trials"], 0),
        (["list", "trials", "--json"], 0),
        (["serving-config", "trials"], 0),
        (["best", "trials"], 1),
        (["prune", "trials", "--keep-best", 1], 1),
        (["prune", "trials", "--keep-latest", 1], 1),
        (["rollback", "trials"], 1),
        (["show", "trials"], 1),
        (["show", "trials", 1], 1),
        (["verify", "trials"], 1),
        (["download", "trials", 1, "copy"], 1),
        (["diff", "trials", 1, 2], 1),
        (["publish", "trials", BASE], 1),
    ],
)
def test_a_parent_directory_points_to_what_is_below(args: list[Any], code: int) -> None:
    for trial in range(5):
        write_version(Path(f"trials/trial_{trial}/execution_0"), 1)
    told = run(*args, code=code).stderr
    assert f"'{Path('trials/trial_0/execution_0').absolute()}'" in told
    assert told.count("execution_0") == 3
    assert told.endswith("….\n")
    assert told.count("\n") == 1


def test_a_version_may_be_given_as_a_path() -> None:
    assert json.loads(run("show", BASE / "2", "--json").stdout)["version"] == 2
    assert run("verify", BASE / "2").stdout == "2: ok\n"
    assert "Withdrew 2, 3." in run("rollback", BASE / "1").stdout
    assert "a path of version 2, and then 3" in run("show", BASE / "2", 3, code=2).stderr
    assert run("download", BASE / "2", "copy").stdout == f"{Path('copy').absolute()}\n"
    assert ExportDirectory("served").publish("copy").metrics == {"loss": 0.25}
    differ = re.compile(r"^metric loss +0.5 +0.25$", re.MULTILINE)
    for versions in ([BASE, 1, 2], [BASE / "1", 2], [BASE / "1", BASE / "2"]):
        text = run("diff", *versions).stdout
        assert differ.search(text)
        assert text.split()[:2] == ["1", "2"]
    text = run("diff", BASE / "1", "served/1").stdout
    assert differ.search(text)
    assert text.split()[:2] == [str(path.absolute()) for path in (BASE / "1", Path("served/1"))]


@pytest.mark.parametrize(
    "args",
    [
        ["list"],
        ["best"],
        ["prune", "--keep-latest", 1],
        ["serving-config"],
    ],
)
def test_a_command_for_a_base_directory_takes_no_version(args: list[Any]) -> None:
    before = tree(BASE)
    error = run(*args, BASE / "2", code=2).stderr
    base = BASE.absolute()
    assert f"which is version 2 in '{base}'. Expected the base directory, '{base}'." in error
    assert tree(BASE) == before


def test_a_number_may_be_the_name_of_a_base_directory() -> None:
    for year in ("2024", "2025"):
        run("publish", BASE / "1", Path("runs", year))
        run("publish", BASE / "2", Path("runs", year))
        assert "2 versions" in run("list", Path("runs", year)).stdout
        assert run("verify", Path("runs", year)).stdout == "1: ok\n2: ok\n"
        assert "Withdrew 2." in run("rollback", Path("runs", year)).stdout
    assert "is a base directory" in run("publish", "runs/2024", "served", code=1).stderr


def test_no_base_directory_is_made_where_a_server_would_take_it_for_a_version() -> None:
    before = tree(BASE)
    for wrong in (BASE / "9", BASE / "9/deeper", BASE / "007"):
        error = run("publish", BASE / "1", wrong, code=1).stderr
        assert f"base_dir='{wrong.absolute()}', but '{BASE.absolute()}' holds versions" in error
        assert f"Expected '{BASE.absolute()}' itself, or a directory whose name is not" in error
    assert tree(BASE) == before


def test_the_metric_of_the_versions_is_the_default() -> None:
    assert run("best", BASE).stdout == "2\n"
    assert run("best", BASE, "--monitor", "loss").stdout == "2\n"
    for option in (["--monitor", "acc"], ["--mode", "max"]):
        for command in (["best"], ["prune", "--keep-best", 1]):
            told = run(*command, BASE, *option, code=2).stderr
            assert f"exported for --monitor loss --mode min. Received {' '.join(option)}. " in told
            assert "give both --monitor and --mode." in told
    write_version(Path("plain"), 1)
    assert "for no metric, so give --monitor and --mode" in run("best", "plain", code=2).stderr
    options = ["--keep-latest", 1, "--keep-best", 1]
    assert run("prune", BASE, *options, "--dry-run").stdout == "Would remove 1.\n"
    assert ExportDirectory(BASE).versions() == [1, 2, 3]
    assert run("prune", BASE, *options).stdout == "Removed 1.\n"
    write_version(BASE, 4, metrics={"acc": 0.5}, monitor="acc", mode="max", value=0.5)
    several = run("best", BASE, code=2).stderr
    assert "--monitor acc --mode max; --monitor loss --mode min." in several


def test_a_copy_of_any_name_is_published() -> None:
    run("download", BASE, 2, "copy")
    assert run("publish", "copy", "served").stdout.strip() == str(Path("served/1").absolute())
    record = ExportDirectory("served").record(1)
    assert record.metrics == {"loss": 0.25}
    assert record.copied_from == str(Path("copy").absolute())
    Path("copy", MANIFEST).unlink()
    assert "has no 'assets.extra/export.json'" in run("publish", "copy", "served", code=1).stderr


def test_a_serving_config_for_a_path_in_a_container() -> None:
    printed = run("serving-config", BASE, "--base-path", "/models/classifier").stdout
    assert 'base_path: "/models/classifier"' in printed
    assert 'name: "base"' in printed


def test_every_help_text_has_an_example_that_is_a_command() -> None:
    for name, command in main.commands.items():
        text = " ".join(run(name, "--help").stdout.split())
        example = text.partition("Example: keras-exports ")[2].split()
        assert example[0] == name
        ctx = command.make_context(name, [], resilient_parsing=True)
        words = [word for word in example[1:] if not word.startswith("--")]
        assert ctx.command.params
        assert words
