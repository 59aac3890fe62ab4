"""A snapshot is written, and what was written says what the next export may link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from keras_export_callbacks import ExportArchive
from keras_export_callbacks.archive.export_archive import registration_of
from keras_export_callbacks.archive.graph.plan import Plan, Planner
from keras_export_callbacks.archive.writer import Reuse, write

DATA = "variables/variables.data-00000-of-00002"  # The numbers; strings have a shard of their own.


@pytest.fixture
def variable() -> Any:
    return tf.Variable([1.0, 2.0, 3.0])


@pytest.fixture
def plan(variable: Any) -> Plan:
    archive = ExportArchive()
    archive.add_endpoint("scale", lambda x: x * variable, [tf.TensorSpec((3,))])
    return Planner(registration_of(archive)).plan()


def written(plan: Plan, name: str, reuse: Reuse) -> Any:
    directory = Path(name)
    directory.mkdir()
    return write(plan.read().completed(), directory, reuse)


def inode(path: str) -> int:
    return Path(path).stat().st_ino


def served(name: str) -> list[float]:
    revived = tf.saved_model.load(name)
    values: list[float] = revived.scale(tf.ones(3)).numpy().tolist()
    return values


def test_what_was_published_is_linked_by_the_next(plan: Plan) -> None:
    first = written(plan, "staged", Reuse())
    Path("staged").rename("first")
    second = written(plan, "second", first.at(Path("first")))
    assert second.graph_reused
    assert not first.graph_reused
    for name in ("saved_model.pb", DATA):
        assert inode(f"first/{name}") == inode(f"second/{name}")
    assert first.files == second.files


def test_a_variable_that_changed_is_written_and_the_graph_is_linked(
    plan: Plan, variable: Any
) -> None:
    reuse = written(plan, "first", Reuse()).at(Path("first"))
    variable.assign([4.0, 5.0, 6.0])
    written(plan, "second", reuse)
    assert inode("first/saved_model.pb") == inode("second/saved_model.pb")
    assert served("first") == [1.0, 2.0, 3.0]
    assert served("second") == [4.0, 5.0, 6.0]


def test_what_was_never_published_is_written_again(plan: Plan) -> None:
    written(plan, "staged", Reuse())
    Path("staged").rename("dropped")
    second = written(plan, "second", Reuse())
    assert second.graph_reused  # What was traced and saved is in memory.
    assert inode("dropped/saved_model.pb") != inode("second/saved_model.pb")
    assert served("second") == [1.0, 2.0, 3.0]


def test_the_files_of_another_graph_are_not_linked(plan: Plan, variable: Any) -> None:
    reuse = written(plan, "first", Reuse()).at(Path("first"))
    archive = ExportArchive()
    archive.add_endpoint("scale", lambda x: 10 * x * variable, [tf.TensorSpec((3,))])
    other = Planner(registration_of(archive)).plan()
    written(other, "second", reuse)
    written(other, "third", reuse)
    for name in ("second", "third"):
        assert served(name) == [10.0, 20.0, 30.0]
        assert inode(f"first/{DATA}") == inode(f"{name}/{DATA}")
