"""``keras-exports``: look after a directory of versions from a shell, without TensorFlow.

Exit codes: 0 success, 1 failure, 2 usage error.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.cells import cell_len, set_cell_size

from . import texts
from .archive.errors import DamagedVersionError, ExportError, NewerVersionError
from .archive.store.directory import ExportDirectory
from .archive.store.files import Progress
from .archive.store.objective import Mode
from .archive.store.record import WARMUP, ExportRecord
from .archive.store.remote import VersionPath
from .archive.store.retention import KeepBest, KeepLatest, RetentionPolicy
from .archive.store.store import version_path


class _Group(click.Group):
    """A group of commands that prints each error and each warning in one line."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _errors_in_one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_in_one_line(), _warnings_in_one_line(), _no_garbage_collection():
            return super().invoke(ctx)


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (click.exceptions.NoArgsIsHelpError, BrokenPipeError):
        raise  # The user asked for help, or the reader closed the pipe, as `| head` does.
    except click.UsageError as error:
        hint = f" Try '{error.ctx.command_path} --help'." if error.ctx else ""
        _tell(f"{error.format_message().removesuffix('.')}.{hint}")
        raise click.exceptions.Exit(error.exit_code) from error
    except (ExportError, OSError) as error:
        _tell(str(error))
        raise click.exceptions.Exit(1) from error


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _tell(str(message), "Warning")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Turn off garbage collection. It would double the run time, and find little to free."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _tell(error: str, kind: str = "Error") -> None:
    click.echo(f"{kind}: {_printable(' '.join(error.split()))}", err=True)


def _directory(ctx: click.Context, param: click.Parameter, value: str) -> ExportDirectory:
    try:
        return ExportDirectory(value)
    except ExportError as error:
        raise click.BadParameter(str(error)) from error


def _existing_directory(ctx: click.Context, param: click.Parameter, value: str) -> ExportDirectory:
    directory = _directory(ctx, param, value)
    if not directory.store.exists():
        raise click.BadParameter(f"There is no directory '{value}'.")
    return directory


def _version_directory(ctx: click.Context, param: click.Parameter, value: str) -> VersionPath:
    try:
        path, _ = version_path(value)
    except ExportError as error:
        raise click.BadParameter(str(error)) from error
    _existing_directory(ctx, param, str(path.parent))
    return path


def _versions_there(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the versions whose numbers begin with what the user typed."""
    base = ctx.params.get("base")
    versions = map(str, base.versions() if isinstance(base, ExportDirectory) else ())
    return [version for version in versions if version.startswith(incomplete)]


_DIRECTORY = click.Path(file_okay=False)
_BASE = click.argument("base", type=_DIRECTORY, callback=_existing_directory)
_VERSION = click.argument("version", type=int, required=False, shell_complete=_versions_there)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=_Group)
@click.version_option(package_name="keras-export-callbacks")
def main() -> None:
    """Look after a directory of exported model versions.

    Exit codes: 0 success, 1 failure, 2 usage error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # The locale may lack "→" or "…".


@main.command("list")
@_BASE
@_JSON
def list_(base: ExportDirectory, as_json: bool) -> None:
    """List the versions in BASE, oldest first."""
    records = {record.version: record for record in base.records()}
    if as_json:
        _print_json([_content(records[version]) for version in sorted(records)])
        return
    rows: list[Sequence[str]] = [
        ("version", "published", "epoch", "step", "reason", "metric", "size")
    ]
    rows += [(str(version), *_row(records.get(version))) for version in base.versions()]
    title, *lines = _columns(rows)
    click.secho(title, bold=True)
    click.echo("\n".join(lines), nl=bool(lines))


@main.command()
@_BASE
@_VERSION
@_JSON
def show(base: ExportDirectory, version: int | None, as_json: bool) -> None:
    """Show everything about a VERSION in BASE, by default the newest."""
    record = base.record(_newest(base) if version is None else version)
    if as_json:
        _print_json(_content(record))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("", Column(overflow="fold"), show_header=False, box=None, pad_edge=False)
    for name, value in _described(base, record).items():
        table.add_row(_printable(name), _printable(value))
    console = Console(width=_width(), highlight=False, markup=False)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


@main.command()
@_BASE
@_VERSION
def verify(base: ExportDirectory, version: int | None) -> None:
    """Compare every byte of a VERSION in BASE with what was published.

    By default, compare all versions.
    """
    versions = _some_versions(base) if version is None else [version]
    failed = 0
    for number in versions:
        with _progress(f"Version {number}", _size(base, number)) as progress:
            problems = base.verify(number, progress)
        failed += bool(problems)
        click.echo(f"{number}: {'; '.join(problems) or 'ok'}")
    if failed:
        sys.exit(1)


@main.command()
@_BASE
@click.option("--monitor", required=True, help="The metric's name, such as val_accuracy.")
@click.option("--mode", required=True, type=click.Choice(["min", "max"]))
def best(base: ExportDirectory, monitor: str, mode: Mode) -> None:
    """Print the number of the version in BASE with the best value of a metric."""
    click.echo(_best(base, monitor, mode).version)


@main.command()
@_BASE
@click.option("--keep-latest", type=click.IntRange(1), help="Keep this many of the newest.")
@click.option("--keep-best", type=click.IntRange(1), help="Keep this many of the best.")
@click.option("--monitor", help="The metric for --keep-best.")
@click.option("--mode", type=click.Choice(["min", "max"]), help="min if lower is better, else max.")
def prune(
    base: ExportDirectory,
    keep_latest: int | None,
    keep_best: int | None,
    monitor: str | None,
    mode: Mode | None,
) -> None:
    """Remove the versions in BASE that no option keeps. The newest version always stays."""
    if keep_best is None and (monitor is not None or mode is not None):
        raise click.UsageError("--monitor and --mode need --keep-best.")
    policies: list[RetentionPolicy] = []
    if keep_latest is not None:
        policies.append(KeepLatest(keep_latest))
    if keep_best is not None:
        if monitor is None or mode is None:
            raise click.UsageError("--keep-best needs --monitor and --mode.")
        _best(base, monitor, mode)  # Fail if no version has the metric. None would be kept.
        policies.append(KeepBest(keep_best, monitor=monitor, mode=mode))
    if not policies:
        raise click.UsageError("Give --keep-latest, --keep-best, or both.")
    policy = policies[0]
    for other in policies[1:]:
        policy = policy | other
    removed = base.prune(policy)
    click.echo(f"Removed {', '.join(map(str, removed)) or 'nothing'}.")


@main.command()
@click.argument("source", type=_DIRECTORY, callback=_version_directory)
@click.argument("base", type=_DIRECTORY, callback=_directory)
def publish(source: VersionPath, base: ExportDirectory) -> None:
    """Publish a copy of the version directory SOURCE as the next version in BASE."""
    _publish(base, source)


@main.command()
@_BASE
@_VERSION
def rollback(base: ExportDirectory, version: int | None) -> None:
    """Publish an older VERSION again, by default the version before the newest.

    Run it again to go back one more.
    """
    if version is not None:
        if version == _newest(base):
            raise ExportError(f"Version {version} is already the newest in '{base.path}'.")
        _publish(base, base.record(version).path)
        return
    before = _before_newest(base)
    try:
        _publish(base, base.record(before).path)
    except (DamagedVersionError, NewerVersionError) as error:
        raise ExportError(
            f"{error} Pass the VERSION to go back to, instead of {before}."
        ) from error


@main.command()
@_BASE
@click.argument("version", type=int, shell_complete=_versions_there)
@click.argument("to", type=click.Path())
def download(base: ExportDirectory, version: int, to: str) -> None:
    """Copy a VERSION in BASE to TO, which must be a new or empty directory.

    Every byte of the copy is compared with what was published.
    """
    with _progress(f"Version {version}", _size(base, version)) as progress:
        path = base.download(version, to, progress)
    click.echo(_printable(str(path)))


@main.command("serving-config")
@_BASE
@click.option("--name", help="The model's name, by default the directory's.")
@click.option("--label", "labels", multiple=True, metavar="LABEL=VERSION", help="Such as stable=7.")
def serving_config(base: ExportDirectory, name: str | None, labels: tuple[str, ...]) -> None:
    """Print a model_config_file for TensorFlow Serving, with labels for versions."""
    pairs = [label.partition("=") for label in labels]
    if any(not text or not number.isascii() or not number.isdecimal() for text, _, number in pairs):
        raise click.UsageError("Expected --label LABEL=VERSION, such as --label stable=7.")
    if len({text for text, _, _ in pairs}) < len(pairs):
        raise click.UsageError("Received a label twice. Give each label to one version only.")
    chosen = {text: base.record(int(number)).version for text, _, number in pairs}
    name = base.path.name if name is None else name
    if not name:
        raise click.UsageError("The model has no name. Pass one, such as --name classifier.")
    try:
        click.echo(_serving_config(base, name, chosen))
    except UnicodeEncodeError as error:
        raise click.UsageError(
            f"Received {error.object!a}. Expected text that UTF-8 can encode."
        ) from error


def _serving_config(base: ExportDirectory, name: str, labels: Mapping[str, int]) -> str:
    """Return a `ModelServerConfig` as text (TensorFlow Serving: model_server_config.proto)."""
    lines = [f"name: {_quoted(name)}", f"base_path: {_quoted(str(base.path))}"]
    lines.append('model_platform: "tensorflow"')
    if labels:
        versions = " ".join(f"versions: {version}" for version in sorted(set(labels.values())))
        lines.append(f"model_version_policy {{ specific {{ {versions} }} }}")
    for label, version in labels.items():
        lines.append(f"version_labels {{ key: {_quoted(label)} value: {version} }}")
    body = "\n".join(f"    {line}" for line in lines)
    return f"model_config_list {{\n  config {{\n{body}\n  }}\n}}"


def _quoted(text: str) -> str:
    """Quote a string for protobuf: https://protobuf.dev/reference/protobuf/textformat-spec/."""
    plain = set(range(0x20, 0x7F)) - set(b'"\\')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'


def _publish(base: ExportDirectory, source: VersionPath) -> None:
    path = _printable(str(base.publish(os.fspath(source)).path))
    try:
        click.echo(path)
    except OSError as error:
        # The version is published. If the command failed, a script might publish it again.
        _tell(f"Published as '{path}', which cannot be printed: {error}.")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _size(base: ExportDirectory, version: int) -> int | None:
    """Return the size of a version in bytes, or None if its manifest does not tell."""
    try:
        return base.record(version).bytes
    except DamagedVersionError:
        return None


@contextlib.contextmanager
def _progress(label: str, size: int | None) -> Iterator[Progress]:
    """Show on a terminal how many of `size` bytes are done, while the block runs."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    is_hidden = not console.is_terminal
    with Bar(
        *columns, TransferSpeedColumn(), console=console, transient=True, disable=is_hidden
    ) as bar:
        task = bar.add_task(label, total=size)
        yield lambda count: bar.advance(task, count)


def _best(base: ExportDirectory, monitor: str, mode: Mode) -> ExportRecord:
    record = base.best(monitor, mode)
    if record is None:
        raise ExportError(f"No version in '{base.path}' has the metric {monitor!r}.")
    return record


def _before_newest(base: ExportDirectory) -> int:
    """Return the version that a rollback publishes by default.

    It is the version before the newest. If the newest version is a copy, it is the version
    before the original. Thus each rollback goes back one more version.
    """
    newest = _newest(base)
    original = min(_same_as(base, newest), default=newest)
    earlier = [version for version in base.versions() if version < original]
    if not earlier:
        raise ExportError(f"'{base.path}' has no version before the newest.")
    return earlier[-1]


def _same_as(base: ExportDirectory, version: int) -> list[int]:
    """Return a version, its copies and its original, or an empty list if it has no record."""
    # A copy differs from its original only in these fields.
    contents = {
        record.version: replace(record, version=0, created="", path=base.path)
        for record in base.records()
    }
    return [number for number in contents if contents[number] == contents.get(version)]


def _newest(base: ExportDirectory) -> int:
    return _some_versions(base)[-1]


def _some_versions(base: ExportDirectory) -> list[int]:
    versions = base.versions()
    if not versions:
        raise ExportError(f"There are no versions in '{base.path}'.")
    return versions


def _row(record: ExportRecord | None) -> Iterable[str]:
    if record is None:
        return ("", "", "", "no readable manifest", "", "")
    return (
        record.created[:16].replace("T", " "),
        "" if record.epoch is None else str(record.epoch),
        "" if record.step is None else str(record.step),
        record.reason or (f"schema {record.schema}" if record.is_newer else ""),
        "" if record.value is None else f"{record.monitor}={record.value:.6g}",
        texts.size(record.bytes),
    )


def _described(base: ExportDirectory, record: ExportRecord) -> dict[str, str]:
    shared = _shared(base, record)
    same = [str(version) for version in _same_as(base, record.version) if version != record.version]
    return {
        "version": str(record.version),
        "path": str(record.path),
        "published": f"{record.created} (UTC)",
        "reason": record.reason,
        **({"schema": f"{record.schema}, newer than this library"} if record.is_newer else {}),
        **({} if record.epoch is None else {"epoch": str(record.epoch)}),
        **({} if record.step is None else {"step": str(record.step)}),
        "weights": record.weights,
        **texts.contents(record),
        "warm-up requests": "included" if WARMUP in record.files else "none",
        "size": texts.size(record.bytes),
        **({"shared": shared} if shared else {}),
        **({"same as": ", ".join(same)} if same else {}),
        "training waited": texts.duration(record.stall_seconds),
        "written in": texts.duration(record.write_seconds),
        "libraries": ", ".join(f"{name} {text}" for name, text in record.libraries.items()),
    }


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines with columns that fit the terminal.

    The widest columns are cut. If they would become too narrow to read, some columns
    are left out first.
    """
    # rich's table would take half a second for a thousand rows.
    columns = [[_printable(cell) for cell in column] for column in zip(*rows, strict=True)]
    widths = [max(map(cell_len, column)) for column in columns]
    screen = _width()
    for spare in ("published", "epoch", "step"):
        if sum(min(width, 12) + 2 for width in widths) - 2 > screen:
            index = [column[0] for column in columns].index(spare)
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


def _printable(content: str) -> str:
    """Replace control characters. Manifests come from outside, and a terminal would obey them."""
    return "".join(char if char.isprintable() else "\ufffd" for char in content)


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


def _content(record: ExportRecord) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(record.to_json())
    return {"path": str(record.path)} | content


def _print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=1))
