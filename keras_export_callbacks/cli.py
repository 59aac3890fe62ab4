"""``keras-exports``: look after a serving directory from a shell, without TensorFlow.

Exit codes: 0 done, 1 the answer is no, 2 wrong usage.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.cells import cell_len, set_cell_size

from . import texts
from .archive.directory import ExportDirectory
from .archive.errors import ExportError
from .archive.objective import Mode
from .archive.record import WARMUP, ExportRecord
from .archive.retention import KeepBest, KeepLatest, RetentionPolicy


class _Group(click.Group):
    """Says what went wrong in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # Such as by `| head`; click ends quietly.
        except (ExportError, OSError) as error:
            click.echo(f"Error: {_printable(str(error))}", err=True)
            ctx.exit(1)


def _directory(ctx: click.Context, param: click.Parameter, value: str) -> ExportDirectory:
    """A base directory that is there."""
    try:
        directory = ExportDirectory(value)
    except ExportError as error:
        raise click.BadParameter(_printable(str(error))) from error
    if not directory.path.is_dir():
        raise click.BadParameter(f"There is no directory '{_printable(value)}'.")
    return directory


_BASE = click.argument("base", callback=_directory)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=_Group)
@click.version_option(package_name="keras-export-callbacks")
def main() -> None:
    """Look after a directory of exported model versions."""


@main.command("list")
@_BASE
@_JSON
def list_(base: ExportDirectory, as_json: bool) -> None:
    """The versions in BASE, oldest first."""
    records = {record.version: record for record in base.records()}
    if as_json:
        _print_json([_content(records[version]) for version in sorted(records)])
        return
    rows: list[Sequence[str]] = [("version", "published", "epoch", "step", "why", "metric", "size")]
    rows += [(str(version), *_row(records.get(version))) for version in base.versions()]
    title, *lines = _columns(rows)
    click.secho(title, bold=True)
    click.echo("\n".join(lines), nl=bool(lines))


@main.command()
@_BASE
@click.argument("version", type=int, required=False)
@_JSON
def show(base: ExportDirectory, version: int | None, as_json: bool) -> None:
    """All about one VERSION in BASE, by default the newest."""
    record = base.record(_newest(base) if version is None else version)
    if as_json:
        _print_json(_content(record))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in _described(base, record).items():
        table.add_row(_printable(name), _printable(value))
    Console(highlight=False, markup=False).print(table)


@main.command()
@_BASE
@click.argument("version", type=int, required=False)
def verify(base: ExportDirectory, version: int | None) -> None:
    """Compare every byte of a VERSION with what was published, by default of all."""
    versions = base.versions() if version is None else [version]
    failed = 0
    is_watched = sys.stderr.isatty() and not sys.stdout.isatty()
    with click.progressbar(versions, file=sys.stderr, hidden=not is_watched) as watched:
        for number in watched:
            problems = base.verify(number)
            failed += bool(problems)
            click.echo(f"{number}: {'; '.join(problems) or 'sound'}")
    if failed:
        sys.exit(1)


@main.command()
@_BASE
@click.option("--monitor", required=True, help="The metric's name, such as val_accuracy.")
@click.option("--mode", required=True, type=click.Choice(["min", "max"]))
def best(base: ExportDirectory, monitor: str, mode: Mode) -> None:
    """Print the number of the version in BASE that is best by a metric."""
    click.echo(_best(base, monitor, mode).version)


@main.command()
@_BASE
@click.option("--keep-latest", type=click.IntRange(1), help="Keep that many of the newest.")
@click.option("--keep-best", type=click.IntRange(1), help="Keep that many of the best.")
@click.option("--monitor", help="The metric that --keep-best goes by.")
@click.option("--mode", type=click.Choice(["min", "max"]), help="Its direction.")
def prune(
    base: ExportDirectory,
    keep_latest: int | None,
    keep_best: int | None,
    monitor: str | None,
    mode: Mode | None,
) -> None:
    """Remove the versions in BASE that no option keeps; never the newest."""
    if keep_best is None and (monitor is not None or mode is not None):
        raise click.UsageError("--monitor and --mode go with --keep-best.")
    policies: list[RetentionPolicy] = []
    if keep_latest is not None:
        policies.append(KeepLatest(keep_latest))
    if keep_best is not None:
        if monitor is None or mode is None:
            raise click.UsageError("--keep-best goes with --monitor and --mode.")
        _best(base, monitor, mode)  # A metric that none has would keep none.
        policies.append(KeepBest(keep_best, monitor=monitor, mode=mode))
    if not policies:
        raise click.UsageError("Give --keep-latest, --keep-best, or both.")
    policy = policies[0]
    for other in policies[1:]:
        policy = policy | other
    removed = base.prune(policy)
    click.echo(f"Removed {', '.join(map(str, removed)) or 'nothing'}.")


@main.command()
@click.argument("source")
@click.argument("base")
def publish(source: str, base: str) -> None:
    """Publish a copy of the version directory SOURCE as the next version in BASE."""
    click.echo(_printable(str(ExportDirectory(base).publish(source).path)))


@main.command()
@_BASE
@click.argument("version", type=int, required=False)
def rollback(base: ExportDirectory, version: int | None) -> None:
    """Publish an older VERSION again as the newest, by default the one before it."""
    chosen = base.record(_before_newest(base) if version is None else version)
    click.echo(_printable(str(base.publish(os.fspath(chosen.path)).path)))


@main.command("serving-config")
@_BASE
@click.option("--name", help="The model's name; by default that of the directory.")
@click.option("--label", "labels", multiple=True, metavar="LABEL=VERSION", help="Such as stable=7.")
def serving_config(base: ExportDirectory, name: str | None, labels: tuple[str, ...]) -> None:
    """Print a model_config_file for TensorFlow Serving, with version labels."""
    pairs = [label.partition("=") for label in labels]
    if any(not text or not number.isascii() or not number.isdecimal() for text, _, number in pairs):
        raise click.UsageError("Expected --label LABEL=VERSION, such as --label stable=7.")
    if len({text for text, _, _ in pairs}) < len(pairs):
        raise click.UsageError("A label can be of one version only.")
    chosen = {text: base.record(int(number)).version for text, _, number in pairs}
    click.echo(_serving_config(base, name or base.path.name, chosen))


def _serving_config(base: ExportDirectory, name: str, labels: Mapping[str, int]) -> str:
    """A `ModelServerConfig` as text (tensorflow_serving/config/model_server_config.proto)."""
    lines = [f"name: {json.dumps(name)}", f"base_path: {json.dumps(str(base.path))}"]
    lines.append('model_platform: "tensorflow"')
    if labels:
        versions = " ".join(f"versions: {version}" for version in sorted(set(labels.values())))
        lines.append(f"model_version_policy {{ specific {{ {versions} }} }}")
    for label, version in labels.items():
        lines.append(f"version_labels {{ key: {json.dumps(label)} value: {version} }}")
    body = "\n".join(f"    {line}" for line in lines)
    return f"model_config_list {{\n  config {{\n{body}\n  }}\n}}"


def _best(base: ExportDirectory, monitor: str, mode: Mode) -> ExportRecord:
    record = base.best(monitor, mode)
    if record is None:
        raise ExportError(f"No version in '{base.path}' has the metric {monitor!r}.")
    return record


def _before_newest(base: ExportDirectory) -> int:
    """The version before the newest; before the original of that, if it was rolled back to."""
    newest = _newest(base)
    # A copy differs from its original in nothing else.
    contents = {
        record.version: replace(record, version=0, created="", path=base.path)
        for record in base.records()
    }
    same = [version for version in contents if contents[version] == contents.get(newest)]
    earlier = [version for version in base.versions() if version < min(same, default=newest)]
    if not earlier:
        raise ExportError(f"'{base.path}' holds no version before the newest.")
    return earlier[-1]


def _newest(base: ExportDirectory) -> int:
    versions = base.versions()
    if not versions:
        raise ExportError(f"There are no versions in '{base.path}'.")
    return versions[-1]


def _row(record: ExportRecord | None) -> Iterable[str]:
    if record is None:
        return ("", "", "", "no readable manifest", "", "")
    return (
        record.created[:16].replace("T", " "),
        "" if record.epoch is None else str(record.epoch),
        "" if record.step is None else str(record.step),
        record.reason,
        "" if record.value is None else f"{record.monitor}={record.value:.6g}",
        texts.size(record.bytes),
    )


def _described(base: ExportDirectory, record: ExportRecord) -> dict[str, str]:
    shared = _shared(base, record)
    return {
        "version": str(record.version),
        "path": str(record.path),
        "published": f"{record.created} (UTC)",
        "why": record.reason,
        **({} if record.epoch is None else {"epoch": str(record.epoch)}),
        **({} if record.step is None else {"step": str(record.step)}),
        "weights": record.weights,
        **texts.contents(record),
        "warm-up requests": "there" if WARMUP in record.files else "none",
        "size": texts.size(record.bytes),
        **({"shared": shared} if shared else {}),
        "training waited": texts.duration(record.stall_seconds),
        "written in": texts.duration(record.write_seconds),
        "libraries": ", ".join(f"{name} {text}" for name, text in record.libraries.items()),
    }


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines with columns, of which the widest are cut to fit the terminal."""
    # Not rich's table: it takes half a second for a thousand rows.
    cells = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    gaps = 2 * (len(widths) - 1)
    room = max(shutil.get_terminal_size((sys.maxsize, 24)).columns - gaps, 4 * len(widths))
    while sum(widths) > room:
        widths[widths.index(max(widths))] -= 1
    for row in cells:
        yield "  ".join(map(_cut, row, widths)).rstrip()


def _cut(cell: str, width: int) -> str:
    if cell_len(cell) > width:
        return set_cell_size(cell, width - 1) + "…"
    return set_cell_size(cell, width)


def _printable(content: str) -> str:
    """For the terminal: manifests come from outside, and may hold what it would obey."""
    return "".join(char if char.isprintable() else "\ufffd" for char in content)


def _shared(base: ExportDirectory, record: ExportRecord) -> str:
    """What a version has in common with others, whose files are links to the same bytes."""
    if not isinstance(record.path, Path):
        return ""
    own = _inodes(record.path)
    shared = []
    for version in base.versions():
        if version != record.version:
            common = own.keys() & _inodes(record.path.with_name(str(version))).keys()
            size = sum(own[inode] for inode in common)
            shared += [f"{texts.size(size)} with {version}"] if size else []
    return ", ".join(shared[-5:])


def _inodes(version_dir: Path) -> dict[int, int]:
    stats = [path.lstat() for path in version_dir.rglob("*") if path.is_file()]
    return {stat.st_ino: stat.st_size for stat in stats}


def _content(record: ExportRecord) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(record.to_json())
    return {"path": str(record.path)} | content


def _print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=1))
