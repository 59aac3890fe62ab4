"""Draw `pause.svg` from `benchmarks/results.json`: what one export costs a training.

`make benchmark ARGS="--json benchmarks/results.json"` measures the results.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from svg import Picture

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results.json"

MODEL = "mobilenet"

# The name of each row, what it writes, and its method in the results. Of the two ways to use
# Keras's archive, the faster is drawn.
ROWS = (
    ("this library", "SavedModel", ("ours",)),
    ("ExportArchive", "Keras, SavedModel", ("reference", "reference-again")),
    ("ModelCheckpoint", "Keras, checkpoint", ("model-checkpoint",)),
    ("OrbaxCheckpoint", "Keras, checkpoint", ("orbax",)),
)

WIDTH, TOP, HEIGHT = 830, 92, 50
PAUSE = (150.0, 450.0)
LOST = (520.0, 795.0)
BOTTOM = TOP + HEIGHT * len(ROWS)


@dataclass(frozen=True)
class Cost:
    """What an export costs, in seconds.

    Attributes:
        first: Float. The pause of the first export in a process, as a median.
        later: Float. The pause of later exports, as a median.
        lost: The training time that each of some exports took in all.
    """

    first: float
    later: float
    lost: Sequence[float]

    @classmethod
    def of(cls, runs: Sequence[Sequence[dict[str, float]]]) -> Cost:
        """Return the cost in the samples of each process."""
        later = [sample["stall"] for run in runs for sample in run[1:] if "stall" in sample]
        lost = [sample["lost"] for run in runs for sample in run if "lost" in sample]
        return cls(median(run[0]["stall"] for run in runs), median(later), lost)


def main() -> None:
    """Read the results and draw them."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    found = {
        result["job"]["method"]: Cost.of(result["runs"])
        for result in content["results"]
        if result["job"]["subject"] == MODEL and result["runs"]
    }
    costs = [
        min((found[method] for method in methods if method in found), key=lambda cost: cost.later)
        for _, _, methods in ROWS
    ]
    title = "How long training pauses for an export, and the training time it takes in all"
    picture = Picture(WIDTH, BOTTOM + 82, title)
    _draw_pauses(picture, costs)
    _draw_lost(picture, costs)
    for index, (name, kind, _) in enumerate(ROWS):
        picture.text(20, _row(index), name, _ink(index))
        picture.text(20, _row(index) + 15, kind, "soft small")
    for line, text in enumerate(_footer(content["machine"])):
        picture.text(20, BOTTOM + 48 + 17 * line, text, "soft small")
    picture.save(HERE / "pause.svg")


def _draw_pauses(picture: Picture, costs: Sequence[Cost]) -> None:
    start, end = PAUSE
    powers = [math.log10(pause) for cost in costs for pause in (cost.first, cost.later)]
    low, high = math.floor(min(powers)), math.ceil(max(powers))

    def at(seconds: float) -> float:
        return start + (end - start) * (math.log10(seconds) - low) / (high - low)

    picture.text(start, 34, "Pause of training for one export", "ink bold")
    picture.circle(start + 5, 52, 5.5, "accent")
    picture.text(start + 16, 56, "later exports", "soft small")
    picture.circle(start + 105, 52, 4, "hollow accent-line")
    picture.text(start + 116, 56, "first export", "soft small")
    _draw_axis(picture, at, (10.0**power for power in range(low, high + 1)))
    for index, cost in enumerate(costs):
        y, color = _row(index), _color(index)
        picture.line(at(cost.later), y, at(cost.first), y, color)
        if at(cost.first) - at(cost.later) > 70:  # There is room for both.
            picture.text(at(cost.first), y - 11, _time(cost.first), "soft", "middle")
        picture.circle(at(cost.first), y, 4, f"hollow {color}-line")
        picture.circle(at(cost.later), y, 5.5, color)
        picture.text(at(cost.later), y - 11, _time(cost.later), _ink(index), "middle")


def _draw_lost(picture: Picture, costs: Sequence[Cost]) -> None:
    start, end = LOST
    every = [0.0, *(seconds for cost in costs for seconds in cost.lost)]
    step = _step(max(every) - min(every))
    low, high = min(every) / step, math.ceil(max(every) / step)

    def at(seconds: float) -> float:
        return start + (end - start) * (seconds / step - low) / (high - low)

    picture.text(start, 34, "Training time lost in all, per export", "ink bold")
    picture.text(start, 56, "bar: median of all, dot: one export", "soft small")
    _draw_axis(picture, at, (count * step for count in range(math.ceil(low), high + 1)))
    picture.line(at(0), TOP - 14, at(0), BOTTOM, "gray")
    for index, cost in enumerate(costs):
        y, middle = _row(index), median(cost.lost)
        left, right = sorted((at(0), at(middle)))
        picture.rect(left, y - 6, max(right - left, 2), 12, _color(index), radius=2)
        for seconds in cost.lost:
            picture.circle(at(seconds), y, 2.5, "ink faded")
        picture.text(right + 6, y - 11, _time(middle), _ink(index))


def _draw_axis(picture: Picture, at: Callable[[float], float], ticks: Iterable[float]) -> None:
    for seconds in ticks:
        picture.line(at(seconds), TOP - 14, at(seconds), BOTTOM, "faint")
        picture.text(at(seconds), BOTTOM + 18, _time(seconds), "soft small", "middle")


def _row(index: int) -> float:
    return TOP + HEIGHT * index + 25


def _color(index: int) -> str:
    return "gray" if index else "accent"


def _ink(index: int) -> str:
    return "ink" if index else "ink bold"


def _step(span: float) -> float:
    """Return a round number that divides a span into about four parts."""
    base = 10.0 ** math.floor(math.log10(span / 4))
    return min((base * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(span / step - 4))


def _time(seconds: float) -> str:
    if seconds == 0:
        return "0"
    size, unit = (1, "s") if abs(seconds) >= 0.9995 else (1e-3, "ms")
    number = float(f"{seconds / size:.2g}")
    return f"{number:g} {unit}".replace("-", "−")


def _footer(machine: dict[str, Any]) -> tuple[str, str]:
    return (
        f"MobileNetV2 on {machine['cpu']}, {machine['disk']}.",
        f"TensorFlow {machine['tensorflow']}, Keras {machine['keras']}, {machine['date'][:10]}. "
        "All numbers are medians. Less is better.",
    )


if __name__ == "__main__":
    main()
