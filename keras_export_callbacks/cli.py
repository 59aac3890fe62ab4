"""The command ``keras-exports`` looks after a directory of versions, without TensorFlow.

Exit codes: 0 success, 1 failure, 2 usage error.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from . import tables
from .archive.errors import (
    DamagedVersionError,
    ExportError,
    VersionNotFoundError,
)
from .archive.store.below import no_versions
from .archive.store.directory import ExportDirectory
from .archive.store.files import Progress, no_progress
from .archive.store.garbage import no_garbage_collection
from .archive.store.objective import Mode, Objective
from .archive.store.record import ExportRecord
from .archive.store.retention import KeepBest, KeepLatest, RetentionPolicy, removals
from .archive.store.store import open_store, version_at
from .archive.store.versions import parse
from .tables import printable


class _Group(click.Group):
    """A group of commands that prints each error and each warning in one line."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _errors_in_one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_in_one_line(), _warnings_in_one_line(), no_garbage_collection():
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


def _tell(error: str, kind: str = "Error") -> None:
    click.echo(f"{kind}: {printable(' '.join(error.split()))}", err=True)


class _TakesVersionPath(click.Command):
    """A command with the arguments BASE and VERSION, which may be one path, BASE/VERSION."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        index = next((i for i, arg in enumerate(args) if not arg.startswith("-")), len(args))
        before, path, after = args[:index], args[index : index + 1], args[index + 1 :]
        with contextlib.suppress(ExportError, OSError):  # The callback of BASE reports it.
            path = [part for text in path for part in _split(text)]
        more = [arg for arg in after if not arg.startswith("-")]
        count = sum(isinstance(param, click.Argument) for param in self.params)
        if len(path) == 2 and len(path) + len(more) > count:
            raise click.UsageError(
                f"Received a path of version {path[1]}, and then {' '.join(more)}. Give the "
                "version once.",
                ctx,
            )
        return super().parse_args(ctx, [*before, *path, *after])


def _split(path: str) -> list[str]:
    """Return BASE and VERSION for a path BASE/VERSION, or else the path alone."""
    files = open_store(path)
    version = parse(files.root.name)
    if version is None:
        return [path]
    base = open_store(files.root.parent)
    is_missing = not files.exists() and base.exists()
    return [str(base.root), str(version)] if is_missing or version_at(path) else [path]


def _directory(ctx: click.Context, param: click.Parameter, value: str) -> ExportDirectory:
    try:
        return ExportDirectory(value)
    except ExportError as error:
        raise click.BadParameter(str(error)) from error


def _existing_directory(ctx: click.Context, param: click.Parameter, value: str) -> ExportDirectory:
    directory = _directory(ctx, param, value)
    if not directory.store.exists():
        raise click.BadParameter(f"There is no directory '{value}'.")
    found = None
    with contextlib.suppress(ExportError, OSError):  # The directory above may be unreadable.
        found = version_at(value)
    if found is not None:
        base, version = found
        raise click.BadParameter(
            f"Received '{value}', which is version {version} in '{base.root}'. Expected the base "
            f"directory, '{base.root}'."
        )
    return directory


def _source(ctx: click.Context, param: click.Parameter, value: str) -> str:
    _directory(ctx, param, value)  # It raises an error for a path that cannot be used.
    return value


def _version_to_compare(
    ctx: click.Context, param: click.Parameter, value: str
) -> tuple[ExportDirectory, int]:
    """Return the base directory and the number of a version in BASE or at a path."""
    base: ExportDirectory = ctx.params["base"]
    if not value.isdecimal():
        path, *number = _split(str(_directory(ctx, param, value).path))
        if not number:
            raise click.BadParameter(
                f"Received {value!r}. Expected the number of a version in BASE, such as 12, or a "
                "path, such as served/classifier/12."
            )
        base, value = ExportDirectory(path), number[0]
    return base, int(value)


def _versions_there(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the versions whose numbers begin with what the user typed."""
    base = ctx.params.get("base")
    versions = map(str, base.versions() if isinstance(base, ExportDirectory) else ())
    return [version for version in versions if version.startswith(incomplete)]


_DIRECTORY = click.Path(file_okay=False)
_BASE = click.argument("base", type=_DIRECTORY, callback=_existing_directory)
_VERSION = click.argument("version", type=int, required=False, shell_complete=_versions_there)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_MONITOR = click.option("--monitor", help="The metric's name, such as val_accuracy.")
_MODE = click.option(
    "--mode", type=click.Choice(["min", "max"]), help="min if lower is better, else max."
)


@click.group(cls=_Group)
@click.version_option(package_name="keras-export-callbacks")
def main() -> None:
    """Look after a directory of exported model versions.

    BASE is the directory that holds the versions, or the URL of one in a bucket, such as
    s3://bucket/served. A version may also be given as BASE/12.

    Exit codes: 0 success, 1 failure, 2 usage error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # The locale may lack "→" or "…".


@main.command("list", epilog="Example: keras-exports list served/classifier")
@_BASE
@_JSON
def list_(base: ExportDirectory, as_json: bool) -> None:
    """List the versions in BASE, oldest first.

    The last column says which version is the newest, which is the best by a metric that
    versions were exported for, and which were withdrawn by a rollback. Epochs count from 1,
    as Keras prints them. In JSON they count from 0, as `initial_epoch` of `fit` does.
    """
    records = {record.version: record for record in base.records()}
    versions = base.versions()
    if as_json:
        _print_json([item for version in versions for item in _listed(base, version, records)])
    else:
        title, *lines = tables.listing(base, versions, records)
        click.secho(title, bold=True)
        click.echo("".join(f"{line}\n" for line in lines), nl=False)
    if not versions:
        click.echo(no_versions(base.store), err=True)


@main.command(cls=_TakesVersionPath, epilog="Example: keras-exports show served/classifier/12")
@_BASE
@_VERSION
@_JSON
def show(base: ExportDirectory, version: int | None, as_json: bool) -> None:
    """Show everything about a VERSION in BASE, by default the newest."""
    record = base.record(_newest(base) if version is None else version)
    if as_json:
        _print_json(_content(record))
        return
    click.echo(tables.description(base, record))


@main.command(cls=_TakesVersionPath, epilog="Example: keras-exports verify served/classifier")
@_BASE
@_VERSION
@_JSON
def verify(base: ExportDirectory, version: int | None, as_json: bool) -> None:
    """Compare every byte of a VERSION in BASE with what was published.

    By default, compare all versions.
    """
    versions = _some_versions(base) if version is None else [version]
    found = {}
    for number in versions:
        with _progress(base, number) as progress:
            found[number] = base.verify(number, progress)
        if not as_json:
            click.echo(f"{number}: {'; '.join(found[number]) or 'ok'}")
    if as_json:
        _print_json([{"version": number, "problems": found[number]} for number in found])
    if any(found.values()):
        sys.exit(1)


@main.command(epilog="Example: keras-exports best served/classifier --monitor val_loss --mode min")
@_BASE
@_MONITOR
@_MODE
def best(base: ExportDirectory, monitor: str | None, mode: Mode | None) -> None:
    """Print the number of the version in BASE with the best value of a metric.

    By default, it is the metric that the versions were exported for.
    """
    click.echo(_best(base, _objective(base, monitor, mode)).version)


@main.command(epilog="Example: keras-exports prune served/classifier --keep-latest 5 --keep-best 1")
@_BASE
@click.option("--keep-latest", type=click.IntRange(1), help="Keep this many of the newest.")
@click.option("--keep-best", type=click.IntRange(1), help="Keep this many of the best.")
@_MONITOR
@_MODE
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
def prune(
    base: ExportDirectory,
    keep_latest: int | None,
    keep_best: int | None,
    monitor: str | None,
    mode: Mode | None,
    dry_run: bool,
) -> None:
    """Remove the versions in BASE that no option keeps. The newest version always stays.

    By default, --keep-best takes the metric that the versions were exported for.
    """
    if keep_best is None and (monitor is not None or mode is not None):
        raise click.UsageError("--monitor and --mode need --keep-best.")
    policies: list[RetentionPolicy] = []
    if keep_latest is not None:
        policies.append(KeepLatest(keep_latest))
    if keep_best is not None:
        objective = _objective(base, monitor, mode)
        _best(base, objective)  # Fail if no version has the metric, because none would stay.
        policies.append(KeepBest(keep_best, monitor=objective.monitor, mode=objective.mode))
    if not policies:
        raise click.UsageError("Give --keep-latest, --keep-best, or both.")
    _some_versions(base)
    policy = policies[0]
    for other in policies[1:]:
        policy = policy | other
    removed = removals(policy, base.records()) if dry_run else base.prune(policy)
    done = "Would remove" if dry_run else "Removed"
    click.echo(f"{done} {', '.join(map(str, removed)) or 'nothing'}.")


@main.command(
    epilog="Example: keras-exports publish trials/trial_3/execution_0/7 served/classifier"
)
@click.argument("source", type=_DIRECTORY, callback=_source)
@click.argument("base", type=_DIRECTORY, callback=_directory)
def publish(source: str, base: ExportDirectory) -> None:
    """Publish a copy of the version SOURCE as the next version in BASE.

    SOURCE is the directory of a version, such as served/classifier/12, or a copy of one with
    any name, as `download` makes it.
    """
    path = printable(str(base.publish(source).path))
    _say_published(path, path)


@main.command(cls=_TakesVersionPath, epilog="Example: keras-exports rollback served/classifier")
@_BASE
@_VERSION
@_JSON
def rollback(base: ExportDirectory, version: int | None, as_json: bool) -> None:
    """Publish an older VERSION again, and withdraw the versions after it.

    By default, it is the version before the newest. Run it again to go back one more.
    Withdrawn versions stay, but do not count as the best any more.
    """
    record = base.rollback(version)
    path = printable(str(record.path))
    withdrawn = ", ".join(map(str, record.withdrawn)) or "nothing"
    said = f"Published version {record.copied_from} again as '{path}'. Withdrew {withdrawn}."
    if as_json:
        content = {
            "path": str(record.path),
            "version": record.version,
            "copied_from": _origin(record),
            "withdrawn": record.withdrawn,
        }
        said = json.dumps(content, indent=1)
    _say_published(path, said)


@main.command(cls=_TakesVersionPath, epilog="Example: keras-exports diff served/classifier 11 12")
@_BASE
@click.argument("a", callback=_version_to_compare, shell_complete=_versions_there)
@click.argument("b", callback=_version_to_compare, shell_complete=_versions_there)
def diff(
    base: ExportDirectory, a: tuple[ExportDirectory, int], b: tuple[ExportDirectory, int]
) -> None:
    """Show in what the versions A and B in BASE differ: metrics, endpoints, files.

    B may also be a path, such as BASE/12 or the path of a version elsewhere.
    """
    before, after = (where.record(version) for where, version in (a, b))
    names = str(before.version), str(after.version)
    if before.path.parent != after.path.parent:
        names = str(before.path), str(after.path)
    title, *lines = tables.comparison(names, before, after)
    click.echo("\n".join([title, *lines]) if lines else "There is no difference.")


@main.command(
    cls=_TakesVersionPath,
    epilog="Example: keras-exports download s3://bucket/served/classifier 12 model",
)
@_BASE
@click.argument("version", type=int, shell_complete=_versions_there)
@click.argument("to", type=click.Path())
def download(base: ExportDirectory, version: int, to: str) -> None:
    """Copy a VERSION in BASE to TO, which must be a new or empty directory.

    Every byte of the copy is compared with what was published.
    """
    with _progress(base, version) as progress:
        path = base.download(version, to, progress)
    click.echo(printable(str(path)))


@main.command(
    "serving-config",
    epilog="Example: keras-exports serving-config served/classifier --base-path /models/classifier",
)
@_BASE
@click.option("--name", help="The model's name, by default the directory's.")
@click.option("--base-path", help="The server's path of BASE, by default the same path.")
@click.option("--label", "labels", multiple=True, metavar="LABEL=VERSION", help="Such as stable=7.")
def serving_config(
    base: ExportDirectory, name: str | None, base_path: str | None, labels: tuple[str, ...]
) -> None:
    """Print a model_config_file for TensorFlow Serving, with labels for versions."""
    if not base.versions():
        click.echo(no_versions(base.store), err=True)
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
        click.echo(
            _serving_config(str(base.path) if base_path is None else base_path, name, chosen)
        )
    except UnicodeEncodeError as error:
        raise click.UsageError(
            f"Received {error.object!a}. Expected text that UTF-8 can encode."
        ) from error


def _serving_config(base_path: str, name: str, labels: Mapping[str, int]) -> str:
    """Return a `ModelServerConfig` as text (TensorFlow Serving: model_server_config.proto)."""
    lines = [f"name: {_quoted(name)}", f"base_path: {_quoted(base_path)}"]
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


def _say_published(path: str, text: str) -> None:
    try:
        click.echo(text)
    except OSError as error:
        # The version is published. If the command failed, a script might publish it again.
        _tell(f"Published as '{path}', which cannot be printed: {error}.")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _size(base: ExportDirectory, version: int) -> int | None:
    """Return the size of a version in bytes, or None if its manifest is damaged."""
    try:
        return base.record(version).bytes
    except DamagedVersionError:
        return None


@contextlib.contextmanager
def _progress(base: ExportDirectory, version: int) -> Iterator[Progress]:
    """Show on a terminal how many bytes of a version are done while a ``with`` block runs."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bar(*columns, TransferSpeedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(f"Version {version}", total=_size(base, version))
        yield lambda count: bar.advance(task, count)


def _objective(base: ExportDirectory, monitor: str | None, mode: Mode | None) -> Objective:
    """Return the metric that the options name, or the one that versions were exported for."""
    if monitor is not None and mode is not None:
        return Objective(monitor, mode)
    records = _some_records(base)
    known = {record.objective for record in records if record.objective is not None}
    fitting = [
        objective
        for objective in known
        if monitor in (None, objective.monitor) and mode in (None, objective.mode)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise click.UsageError(f"Versions were exported for several metrics: {_options(fitting)}.")
    if not known:
        raise click.UsageError(
            f"The versions in '{base.path}' were exported for no metric, so give --monitor and "
            "--mode."
        )
    given = f"--mode {mode}" if monitor is None else f"--monitor {monitor}"
    raise click.UsageError(
        f"The versions in '{base.path}' were exported for {_options(known)}. Received {given}. For "
        "another metric or direction, give both --monitor and --mode."
    )


def _options(objectives: Iterable[Objective]) -> str:
    return "; ".join(sorted(f"--monitor {each.monitor} --mode {each.mode}" for each in objectives))


def _best(base: ExportDirectory, objective: Objective) -> ExportRecord:
    record = base.best(objective.monitor, objective.mode)
    if record is None:
        _some_records(base)
        raise ExportError(f"No version in '{base.path}' has the metric {objective.monitor!r}.")
    return record


def _newest(base: ExportDirectory) -> int:
    return _some_versions(base)[-1]


def _some_versions(base: ExportDirectory) -> list[int]:
    versions = base.versions()
    if not versions:
        raise ExportError(no_versions(base.store))
    return versions


def _some_records(base: ExportDirectory) -> list[ExportRecord]:
    records = base.records()
    if not records:
        _some_versions(base)
        raise ExportError(f"No version in '{base.path}' has a readable manifest.")
    return records


def _listed(
    base: ExportDirectory, version: int, records: Mapping[int, ExportRecord]
) -> Iterator[dict[str, Any]]:
    """Yield the JSON of a version: its manifest, or the reason why that cannot be read."""
    try:
        yield _content(records[version] if version in records else base.record(version))
    except VersionNotFoundError:
        return  # It was removed meanwhile.
    except DamagedVersionError as error:
        yield {"path": str(base.path / str(version)), "version": version, "error": str(error)}


def _content(record: ExportRecord) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(record.to_json())
    origin = {} if record.copied_from is None else {"copied_from": _origin(record)}
    return {"path": str(record.path)} | content | origin


def _origin(record: ExportRecord) -> int | str | None:
    """Return what a version is a copy of: a number in the same base directory, or a path."""
    return parse(record.copied_from or "") or record.copied_from


def _print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=1))
