"""What ``keras-exports`` prints about versions, on terminals of any width and without one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.command_line import BASE, run, write_versions
from support.processes import run_python
from support.versions import FILES, file_infos, write_files, write_version

from keras_export_callbacks import texts
from keras_export_callbacks.archive.store.record import ParityInfo


@pytest.fixture(autouse=True)
def versions() -> None:
    write_versions()


def test_list() -> None:
    write_files(BASE / "4", {"theirs": b""})
    lines = run("list", BASE).stdout.splitlines()
    assert lines[0].split() == [
        "version", "published", "epoch", "step", "reason", "metric", "size", "note",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:-1]] == ["1", "2", "3", "4"]
    assert [line.split()[-1] for line in lines[2:5]] == ["best", "B", "newest"]
    size = sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file())
    assert lines[5] == f"4 versions, {texts.size(size)}"
    assert "loss=0.25" in lines[2]
    assert "no readable manifest" in lines[4]
    narrow = run("list", BASE, env={"COLUMNS": "76"}).stdout.splitlines()
    assert any(len(line) > 76 for line in lines)
    assert all(len(line) <= 76 for line in narrow)
    assert any("…" in line for line in narrow)
    narrower = run("list", BASE, env={"COLUMNS": "36"}).stdout.splitlines()
    assert all(len(line) <= 36 for line in narrower)
    assert narrower[0].split() == ["version", "metric", "size", "note"]
    assert narrower[2].split()[1:] == ["loss=0.25", "286", "B", "best"]


def test_a_list_marks_the_best_by_each_metric_copies_and_what_was_withdrawn() -> None:
    write_version(BASE, 4, metrics={"acc": 0.5}, monitor="acc", mode="max", value=0.5)
    run("rollback", BASE, 1)
    lines = run("list", BASE).stdout.splitlines()[1:-1]
    notes = [re.split(r" B +", line)[1:] for line in lines]
    assert notes == [
        ["best loss"],
        ["withdrawn"],
        ["withdrawn"],
        ["withdrawn"],
        ["newest, copy of 1"],
    ]


def test_show_tells_endpoints_metrics_and_what_is_shared() -> None:
    run("publish", BASE / "2", BASE)
    text = run("show", BASE, env={"COLUMNS": "200"}).stdout
    assert "x: float32 (any, 3) → output_0: float32 of any shape" in text
    assert "metric loss" in text
    assert "with 2" in text.split("shared")[1].splitlines()[0]
    assert re.search(r"^copy of +2$", text, re.MULTILINE)
    assert "version 1" in " ".join(run("show", BASE, 1).stdout.split())
    assert json.loads(run("show", BASE, 3, "--json").stdout)["value"] == 0.75


def test_show_tells_what_was_compared_and_what_was_not() -> None:
    parity = ParityInfo(
        live_seconds=0.1,
        check_seconds=1.0,
        differences={"serve/output_0": 2e-7},
        allowed={"serve/output_0": 3e-4},
        skipped={"call_training": "draws random numbers"},
    )
    write_version(BASE, 4, parity=parity)
    text = run("show", BASE, env={"COLUMNS": "200"}).stdout
    assert re.search(r"compared serve/output_0 +differs by 2e-07, up to 0.0003 is rounding", text)
    assert re.search(r"not compared call_training +draws random numbers", text)


def test_diff() -> None:
    run("publish", BASE / "2", BASE)
    larger = FILES | {"saved_model.pb": b"larger graph"}
    write_version(BASE, 5, files=file_infos(larger), metrics={"loss": 0.1})
    text = run("diff", BASE, 2, 5).stdout
    assert re.search(r"^metric loss +0.25 +0.1$", text, re.MULTILINE)
    assert re.search(r"^saved_model.pb +\d+ B +12 B$", text, re.MULTILINE)
    assert text.splitlines()[0].split() == ["2", "5"]
    assert "x: float32" not in text
    narrow = run("diff", BASE, 2, 5, env={"COLUMNS": "18"}).stdout.splitlines()
    assert all(len(line) <= 18 for line in narrow)
    assert len(narrow) == len(text.splitlines())


def test_what_a_manifest_says_is_not_obeyed_by_the_terminal() -> None:
    write_version(BASE, 4, reason="\x1b[31m[bold]red[/bold]")
    for command in ("list", "show"):
        text = run(command, BASE).stdout
        assert "\x1b" not in text
        assert "[bold]" in text


@pytest.mark.parametrize("command", ["list", "show"])
def test_what_the_locale_lacks_is_replaced(command: str) -> None:
    shown = run_python(
        f"from keras_export_callbacks.cli import main; main([{command!r}, {str(BASE)!r}])",
        PYTHONIOENCODING="ascii",
    )
    assert "requested" in shown


def test_nothing_is_cut_where_there_is_no_terminal() -> None:
    deep = Path("long" * 20, "path" * 20)
    write_version(deep, 1)
    shown = run_python(
        f"from keras_export_callbacks.cli import main; main(['show', {str(deep)!r}])", COLUMNS=""
    )
    assert str(deep.absolute() / "1") in shown
