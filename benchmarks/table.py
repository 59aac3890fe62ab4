"""Print the results as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from plan import EPOCHS, FLOOR, METHODS, MODELS, Result, ratio
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from targets import Target

Column = tuple[str, Callable[[Result], str]]


def show(
    console: Console, machine: Mapping[str, str], results: list[Result], targets: list[Target]
) -> None:
    """Print everything that was measured."""
    console.print(_machine(machine))
    for model, title in MODELS.items():
        found = [result for result in results if result.job.subject == model]
        if found:
            console.print(_table(title, found, _EXPORT_COLUMNS))
    found = [result for result in results if result.job.subject == EPOCHS]
    if found:
        console.print(_table("MobileNetV2 in model.fit", found, _EPOCH_COLUMNS))
    console.print(_targets(targets))


def _machine(machine: Mapping[str, str]) -> Group:
    return Group(*(f"{name}: {value}" for name, value in machine.items()), "")


def _table(title: str, results: Iterable[Result], columns: list[Column]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for name, _ in columns:
        table.add_column(name, justify="right")
    for result in results:
        name = METHODS.get(result.job.method, "memory copy; write and fsync")
        if result.runs:
            table.add_row(name, *(value(result) for _, value in columns))
        if result.problem:
            table.add_row(escape(f"{name}: {result.problem}"))
    return table


def _targets(targets: Iterable[Target]) -> Table:
    table = Table(title="Targets", title_justify="left")
    for name in ("ratio", "target", "measured", ""):
        table.add_column(name, justify="left" if name == "ratio" else "right")
    answers = {True: "met", False: "not met", None: "not measured"}
    for target in targets:
        bound = f"{'≥' if target.at_least else '≤'} {target.bound:,g}"
        table.add_row(target.what, bound, number(target.value), answers[target.met])
    return table


def time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.3g} s" if abs(seconds) >= 1 else f"{1000 * seconds:.3g} ms"


def size(count: float | None) -> str:
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"


def _first_or_later(result: Result, what: str) -> float | None:
    later = result.later(what)
    return result.first(what) if later is None else later


_EXPORT_COLUMNS: list[Column] = [
    ("first stall", lambda r: "–" if r.job.method == FLOOR else time(r.first("stall"))),
    ("later stall", lambda r: time(r.later("stall"))),
    ("servable after", lambda r: time(r.later("servable"))),
    ("bytes", lambda r: size(_first_or_later(r, "bytes"))),
    ("new bytes", lambda r: size(r.later("new_bytes"))),
    ("lost in all", lambda r: time(r.later("lost"))),
    ("step", lambda r: time(r.later("step"))),
    ("step after", lambda r: time(r.later("step_beside"))),
    ("stall ×", lambda r: number(r.growth("stall"))),
    ("memory ×", lambda r: number(r.growth("rss"))),
    ("saved_model.pb ×", lambda r: number(r.growth("graph_bytes"))),
]

_EPOCH_COLUMNS: list[Column] = [
    ("epoch without", lambda r: time(r.later("without"))),
    ("epoch with an export", lambda r: time(r.later("with"))),
    ("ratio", lambda r: number(ratio(r.later("with"), r.later("without")))),
    ("processor without", lambda r: time(r.later("cpu_without"))),
    ("processor with", lambda r: time(r.later("cpu_with"))),
    ("ratio", lambda r: number(ratio(r.later("cpu_with"), r.later("cpu_without")))),
]
