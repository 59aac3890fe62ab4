"""The rules of the house: who may know whom, and that everything says what it is for."""

from __future__ import annotations

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support.processes import run_python
from support.versions import write_version

ROOT = Path(__file__).parents[1]
PACKAGE = "keras_export_callbacks"
ENGINE = f"{PACKAGE}.archive"

# Modules by the name they are imported by, and where their source lies.
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.glob(f"{PACKAGE}/**/*.py"))
} | {
    ".".join([PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]): path
    for path in sorted(ROOT.glob("archive/**/*.py"))
}
IN_ENGINE = [name for name in SOURCES if name.startswith(f"{ENGINE}.")]

HEAVY = {"tensorflow", "keras", "keras_tuner", "tensorboard", "numpy"}
LIGHT = [
    f"{PACKAGE}.triggers",
    f"{PACKAGE}.worker",
    *(name for name in IN_ENGINE if name.startswith(f"{ENGINE}.store.")),
    f"{ENGINE}.state.variable_index",
]


def rooms() -> dict[str, set[str]]:
    """Which rooms each room of the engine may import, from the table in its README."""
    rows = (ROOT / "archive" / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [row.split("|")[1:-1] for row in rows if row.startswith("| `")]
    names = [(_rooms_in(room), _rooms_in(imported)) for room, _, imported in cells]
    return {room: imported for group, imported in names for room in group}


def _rooms_in(cell: str) -> set[str]:
    return {name.strip("/").removesuffix(".py") for name in re.findall("`([^`]+)`", cell)}


def room_of(module: str) -> str:
    return module.removeprefix(f"{ENGINE}.").split(".")[0]


def parsed(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def imports(module: str) -> set[str]:
    """What a module imports anywhere in it, by absolute name; of our own, the very module."""
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*parents, *(node.module or "").split(".")]).strip(".")
            names = {f"{origin}.{alias.name}" for alias in node.names}
            found |= (names & SOURCES.keys()) or {origin}
    return {f"{name}.__init__" if f"{name}.__init__" in SOURCES else name for name in found}


def reachable(module: str) -> set[str]:
    """All that comes along when a module is imported, as far as it is ours, and what it imports."""
    found: set[str] = set()
    pending = {module}
    while pending:
        name = pending.pop()
        found.add(name)
        if name in SOURCES:
            pending |= imports(name) - found
    return found


def test_the_sources_are_found_and_what_they_import_is_understood() -> None:
    assert {*LIGHT, f"{PACKAGE}.pipeline", f"{ENGINE}.graph.servable"} <= SOURCES.keys()
    assert {f"{ENGINE}.errors", f"{ENGINE}.store.versions", "os"} <= imports(
        f"{ENGINE}.store.directory"
    )
    assert "tensorflow" in imports(f"{ENGINE}.graph.servable")
    assert "tensorflow" in reachable(f"{PACKAGE}.callbacks.base")
    for module in SOURCES:
        ours = {name for name in imports(module) if name.startswith(PACKAGE)}
        assert ours <= SOURCES.keys()


@pytest.mark.parametrize("module", IN_ENGINE)
def test_a_room_of_the_engine_imports_what_its_readme_allows(module: str) -> None:
    room, allowed = room_of(module), rooms()
    imported = {name for name in imports(module) if name.startswith(f"{PACKAGE}.")}
    assert {name for name in imported if not name.startswith(f"{ENGINE}.")} == set()
    if room in allowed and room not in {"export_archive", "restore"}:
        assert {room_of(name) for name in imported} <= {room, *allowed[room]}


def test_the_readme_of_the_engine_knows_every_room() -> None:
    assert rooms().keys() == {room_of(module) for module in IN_ENGINE} - {"__init__"}


@pytest.mark.parametrize("module", LIGHT)
def test_what_must_be_light_reaches_nothing_heavy(module: str) -> None:
    assert not {name.split(".")[0] for name in reachable(module)} & HEAVY


def test_dependencies_run_one_way() -> None:
    # Raises CycleError, naming the cycle, if they do not.
    TopologicalSorter({name: imports(name) & SOURCES.keys() for name in SOURCES}).prepare()


@pytest.mark.parametrize("module", SOURCES)
def test_everything_public_says_what_it_is_for(module: str) -> None:
    tree = parsed(module)
    documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [
        node for node in tree.body if isinstance(node, documented) and not node.name.startswith("_")
    ]
    assert ast.get_docstring(tree)
    assert [node.name for node in public if not ast.get_docstring(node)] == []


LIGHT_USE = """
import sys
from keras_export_callbacks import ExportDirectory, ExportError, ExportRecord, KeepBest, KeepLatest
directory = ExportDirectory("base")
assert directory.versions() == [1, 2]
assert directory.verify(2) == []
assert directory.best("m", "min").version == 1
assert directory.publish("base/1").version == 3
assert directory.prune(KeepLatest(1) | KeepBest(1, "m", "min")) == [2]
import keras_export_callbacks.triggers, keras_export_callbacks.worker
import keras_export_callbacks.archive.state.variable_index
print(*sorted({name.split(".")[0] for name in sys.modules} & set(sys.argv[1:])))
"""

PUBLIC = """
import inspect
import keras_export_callbacks
names = keras_export_callbacks.__all__
assert names == sorted(set(names)), "__all__ is not in order"
assert set(names) <= set(dir(keras_export_callbacks))
for name in names:
    item = getattr(keras_export_callbacks, name)
    assert item.__name__ == name
    assert inspect.getdoc(item), name
    for member, value in inspect.getmembers(item):
        ours = str(getattr(value, "__module__", "")).startswith("keras_export_callbacks")
        if ours and callable(value) and not member.startswith("_"):
            assert inspect.getdoc(value), f"{name}.{member}"
    print(name)
"""


@pytest.mark.slow
def test_looking_at_exports_does_not_load_tensorflow() -> None:
    write_version(Path("base"), 1, metrics={"m": 1.0})
    write_version(Path("base"), 2, metrics={"m": 2.0})
    assert run_python(LIGHT_USE, *HEAVY) == "\n"


@pytest.mark.slow
def test_every_public_name_is_there_and_documented() -> None:
    assert run_python(PUBLIC).split() == [
        "ExportArchive", "ExportDirectory", "ExportError", "ExportEveryN", "ExportOnImprove",
        "ExportRecord", "Exporter", "KeepBest", "KeepLatest", "restore", "standard_endpoints",
    ]  # fmt: skip


def test_other_names_are_not_there() -> None:
    import keras_export_callbacks

    with pytest.raises(AttributeError, match="has no attribute 'Exporters'"):
        _ = keras_export_callbacks.Exporters  # type: ignore[attr-defined]


def test_every_folder_with_code_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {module.rpartition(".")[0] for module in SOURCES}
    assert set(project["tool"]["setuptools"]["packages"]) == folders
