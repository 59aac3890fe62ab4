"""Draw `pause.svg` from `benchmarks/results.json`: what one export costs a training.

The results are from a run of `make benchmark ARGS="--json benchmarks/results.json"`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median
from typing import Any

from svg import Picture

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results.json"

# Of the two ways to use Keras's archive, the faster is drawn.
METHODS = {
    ("ours",): ("this library", "SavedModel"),
    ("reference", "reference-again"): ("ExportArchive", "SavedModel"),
    ("model-checkpoint",): ("ModelCheckpoint", "checkpoint"),
    ("orbax",): ("OrbaxCheckpoint", "checkpoint"),
}

WIDTH, TOP, ROW = 830, 92, 50
LEFT = (150.0, 450.0)
RIGHT = (515.0, 795.0)
UNITS = ((1, "s"), (1e-3, "ms"))


def main() -> None:
    """Read the results and draw them."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    runs = {(r["job"]["subject"], r["job"]["method"]): r["runs"] for r in content["results"]}
    height = TOP + ROW * len(METHODS) + 66
    title = "The pause of an export, and the training time that an export takes in all"
    picture = Picture(WIDTH, height, title)
    bottom = TOP + ROW * len(METHODS)
    _pauses(picture, runs, bottom)
    _lost(picture, runs, bottom)
    for index, (name, kind) in enumerate(METHODS.values()):
        y = TOP + ROW * index + 25
        picture.text(20, y, name, "ink bold" if index == 0 else "ink")
        picture.text(20, y + 15, kind, "soft small")
    picture.text(20, height - 16, _machine(content["machine"]), "soft small")
    picture.save(HERE / "pause.svg")


def _pauses(picture: Picture, runs: dict[Any, Any], bottom: float) -> None:
    start, end = LEFT
    pauses = [_pause(runs, methods) for methods in METHODS]
    low = math.floor(math.log10(min(map(min, pauses))))
    high = math.ceil(math.log10(max(map(max, pauses))))

    def at(seconds: float) -> float:
        return start + (end - start) * (math.log10(seconds) - low) / (high - low)

    picture.text(start, 34, "Pause of training for one export", "ink bold")
    picture.circle(start + 5, 52, 5, "accent")
    picture.text(start + 16, 56, "later exports", "soft small")
    picture.circle(start + 105, 52, 4, "hollow accent-line")
    picture.text(start + 116, 56, "first export", "soft small")
    for power in range(low, high + 1):
        x = at(10.0**power)
        picture.line(x, TOP - 14, x, bottom, "faint")
        picture.text(x, bottom + 18, _time(10.0**power), "soft small", "middle")
    for index, (first, later) in enumerate(pauses):
        y = TOP + ROW * index + 25
        color = _color(index)
        picture.line(at(later), y, at(first), y, color)
        picture.circle(at(first), y, 4, f"hollow {color}-line")
        picture.circle(at(later), y, 5.5, color)
        picture.text(at(later), y - 11, _time(later), "ink bold" if index == 0 else "ink", "middle")


def _lost(picture: Picture, runs: dict[Any, Any], bottom: float) -> None:
    start, end = RIGHT
    lost = [_losses(runs, methods) for methods in METHODS]
    step = _step(max(map(max, lost)) - min(0.0, *map(min, lost)))
    low = step * math.floor(min(0.0, *map(min, lost)) / step)
    high = step * math.ceil(max(map(max, lost)) / step)

    def at(seconds: float) -> float:
        return start + (end - start) * (seconds - low) / (high - low)

    picture.text(start, 34, "Training time lost in all, per export", "ink bold")
    picture.text(
        start, 56, "dot: an epoch with an export minus one without; bar: median", "soft small"
    )
    for count in range(round(low / step), round(high / step) + 1):
        x = at(count * step)
        picture.line(x, TOP - 14, x, bottom, "gray" if count == 0 else "faint")
        picture.text(x, bottom + 18, _signed(f"{count * step:g} s"), "soft small", "middle")
    for index, losses in enumerate(lost):
        y = TOP + ROW * index + 25
        middle = median(losses)
        x = min(at(0), at(middle))
        picture.rect(x, y - 6, max(abs(at(middle) - at(0)), 2), 12, _color(index), radius=2)
        for seconds in losses:
            picture.circle(at(seconds), y, 2.5, "ink faded")
        classes = "ink bold" if index == 0 else "ink"
        picture.text(at(max(0.0, middle)) + 6, y - 11, _time(middle), classes)


def _pause(runs: dict[Any, Any], methods: tuple[str, ...]) -> tuple[float, float]:
    """Return the pause of the first export and of later ones, as medians, in seconds."""

    def later(method: str) -> float:
        processes = runs["mobilenet", method]
        return median(s["stall"] for run in processes for s in run[1:] if "stall" in s)

    fastest = min((method for method in methods if ("mobilenet", method) in runs), key=later)
    return median(run[0]["stall"] for run in runs["mobilenet", fastest]), later(fastest)


def _losses(runs: dict[Any, Any], methods: tuple[str, ...]) -> list[float]:
    """Return the seconds that each epoch with an export took longer than the next without.

    The first pair does not count, because the first export is in it.
    """
    found = [
        [sample["with"] - sample["without"] for run in runs["epochs", method] for sample in run[1:]]
        for method in methods
        if ("epochs", method) in runs
    ]
    return min(found, key=median)


def _color(index: int) -> str:
    return "accent" if index == 0 else "gray"


def _step(span: float) -> float:
    """Return a round number that divides an axis into about five parts."""
    base = 10.0 ** math.floor(math.log10(span / 5))
    return min((base * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(span / step - 5))


def _time(seconds: float) -> str:
    size, unit = next((u for u in UNITS if abs(seconds) >= u[0]), UNITS[-1])
    return _signed(f"{float(f'{seconds / size:.2g}'):g} {unit}")


def _signed(text: str) -> str:
    """Return a number with a minus sign instead of a hyphen."""
    return text.replace("-", "−")


def _machine(machine: dict[str, str]) -> str:
    names = {"tensorflow": "TensorFlow", "keras": "Keras"}
    versions = [f"{title} {machine[name]}" for name, title in names.items()]
    return " · ".join(
        ["MobileNetV2", machine["cpu"], machine["disk"], *versions, machine["date"][:10]]
    )


if __name__ == "__main__":
    main()
