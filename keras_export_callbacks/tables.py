"""Tables about versions, as text for a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.cells import cell_len, set_cell_size

from . import texts
from .archive.store.directory import ExportDirectory
from .archive.store.record import WARMUP, ExportRecord, standing, withdrawn


def listing(
    base: ExportDirectory, versions: Sequence[int], records: Mapping[int, ExportRecord]
) -> Iterator[str]:
    """Yield a title, a line for each version, and a line about all of them.

    Args:
        base: The base directory.
        versions: The versions in it, in ascending order.
        records: The records of the versions that have a readable manifest.
    """
    notes = _notes(versions, list(records.values()))
    rows: list[Sequence[str]] = [
        ("version", "published", "epoch", "step", "reason", "metric", "size", "note")
    ]
    rows += [
        (str(version), *_row(records.get(version)), ", ".join(notes[version]))
        for version in versions
    ]
    yield from _columns(rows)
    if versions:
        count = "1 version" if len(versions) == 1 else f"{len(versions)} versions"
        yield f"{count}, {texts.size(_disk_space(base, versions, records))}"


def description(base: ExportDirectory, record: ExportRecord) -> str:
    """Return everything about a version."""
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("", Column(overflow="fold"), show_header=False, box=None, pad_edge=False)
    for name, value in _described(record, _shared(base, record)).items():
        table.add_row(printable(name), printable(value))
    console = Console(width=_width(), highlight=False, markup=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def comparison(names: tuple[str, str], before: ExportRecord, after: ExportRecord) -> list[str]:
    """Return a title, and a line for each difference of two versions.

    Args:
        names: The names of the two versions for the title.
        before: The record of the first version.
        after: The record of the second version.
    """
    return list(_columns([("", *names), *_differences(before, after)]))


def printable(content: str) -> str:
    """Replace control characters. Manifests come from outside, and a terminal would obey them."""
    return "".join(char if char.isprintable() else "\ufffd" for char in content)


def _notes(versions: Sequence[int], records: Sequence[ExportRecord]) -> dict[int, list[str]]:
    """Return the notes about each version, such as "newest"."""
    notes: dict[int, list[str]] = {version: [] for version in versions}
    if versions:
        notes[versions[-1]].append("newest")
    counting = standing(records)
    objectives = {record.objective for record in records if record.objective is not None}
    for objective in sorted(objectives, key=lambda each: (each.monitor, each.mode)):
        record = objective.best(counting)
        if record is not None and record.version in notes:
            which = "best" if len(objectives) == 1 else f"best {objective.monitor}"
            notes[record.version].append(which)
    for record in records:
        if record.version in notes:
            notes[record.version] += ["copy of " + record.copied_from] if record.copied_from else []
    for version in withdrawn(records):
        if version in notes:
            notes[version].append("withdrawn")
    return notes


def _row(record: ExportRecord | None) -> Iterable[str]:
    if record is None:
        return ("", "", "", "no readable manifest", "", "")
    return (
        record.created[:16].replace("T", " "),
        texts.epoch(record),
        "" if record.step is None else str(record.step),
        record.reason or (f"schema {record.schema}" if record.is_newer else ""),
        "" if record.value is None else f"{record.monitor}={record.value:.6g}",
        texts.size(record.bytes),
    )


def _disk_space(
    base: ExportDirectory, versions: Iterable[int], records: Mapping[int, ExportRecord]
) -> int:
    """Return how many bytes all versions take. Files that they share count once."""
    if not base.store.can_link:
        return sum(record.bytes for record in records.values())
    inodes: dict[int, int] = {}
    for version in versions:
        path = base.store.local_path(version)
        inodes |= {} if path is None else _inodes(path)
    return sum(inodes.values())


def _described(record: ExportRecord, shared: str = "") -> dict[str, str]:
    return {
        "version": str(record.version),
        "path": str(record.path),
        "published": f"{record.created} (UTC)",
        "reason": record.reason,
        **({"schema": f"{record.schema}, newer than this library"} if record.is_newer else {}),
        **({} if record.epoch is None else {"epoch": texts.epoch(record)}),
        **({} if record.step is None else {"step": str(record.step)}),
        "weights": record.weights,
        **texts.contents(record),
        "warm-up requests": "included" if WARMUP in record.files else "none",
        "size": texts.size(record.bytes),
        **({"shared": shared} if shared else {}),
        **({"copy of": record.copied_from} if record.copied_from else {}),
        **({"withdrew": ", ".join(map(str, record.withdrawn))} if record.withdrawn else {}),
        "training waited": texts.duration(record.stall_seconds),
        "written in": texts.duration(record.write_seconds),
        "libraries": ", ".join(f"{name} {text}" for name, text in record.libraries.items()),
    }


def _differences(before: ExportRecord, after: ExportRecord) -> Iterator[tuple[str, str, str]]:
    """Yield a name and two values for each difference of two versions."""
    old, new = _described(before), _described(after)
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in ("version", "path") and old.get(name) != new.get(name):
            yield name, old.get(name, "–"), new.get(name, "–")
    for name in sorted(before.files.keys() | after.files.keys()):
        infos = before.files.get(name), after.files.get(name)
        if infos[0] != infos[1]:
            one, other = ("–" if info is None else texts.size(info.size) for info in infos)
            yield name, one, other


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines with columns that fit the terminal.

    The widest columns are cut. If they would become too narrow to read, some columns
    are left out first.
    """
    # rich's table would take half a second for a thousand rows.
    columns = [[printable(cell) for cell in column] for column in zip(*rows, strict=True)]
    widths = [max(map(cell_len, column)) for column in columns]
    screen = _width()
    for spare in ("published", "epoch", "step", "reason"):
        titles = [column[0] for column in columns]
        if spare in titles and sum(min(width, 12) + 2 for width in widths) - 2 > screen:
            index = titles.index(spare)
            del columns[index], widths[index]
    room = max(screen - 2 * (len(widths) - 1), 4 * len(widths))
    while sum(widths) > room:
        widths[widths.index(max(widths))] -= 1
    for row in zip(*columns, strict=True):
        yield "  ".join(map(_cut, row, widths)).rstrip()


def _width() -> int:
    """Return the width of the terminal in columns, or a very large number without a terminal."""
    return shutil.get_terminal_size((1_000_000, 24)).columns


def _cut(cell: str, width: int) -> str:
    if cell_len(cell) > width:
        return set_cell_size(cell, width - 1) + "…"
    return set_cell_size(cell, width)


def _shared(base: ExportDirectory, record: ExportRecord) -> str:
    """Return a text about the versions that share files with a version by hard links."""
    path = base.store.local_path(record.version)
    if path is None:
        return ""
    own = _inodes(path)
    shared = []
    for version in base.versions():
        if version != record.version:
            common = own.keys() & _inodes(path.with_name(str(version))).keys()
            size = sum(own[inode] for inode in common)
            shared += [f"{texts.size(size)} with {version}"] if size else []
    return ", ".join(shared[-5:])


def _inodes(version_dir: Path) -> dict[int, int]:
    stats = [path.lstat() for path in version_dir.rglob("*") if path.is_file()]
    return {stat.st_ino: stat.st_size for stat in stats}
