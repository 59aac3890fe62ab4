"""Draw `strip.svg` from `strip.json`: a training, its versions, and a server that follows."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

from svg import Picture

HERE = Path(__file__).parent
WIDTH, HEIGHT = 830, 250
START, END = 110.0, 810.0

# The middle of each row.
TRAINING, VERSIONS, SERVER, AXIS = 62, 126, 184, 222


def main() -> None:
    """Read the times and draw them."""
    times = json.loads((HERE / "strip.json").read_text(encoding="utf-8"))
    epochs, published, answered = times["epochs"], times["published"], times["answered"]
    seconds: float = max(epochs[-1]["end"], answered[-1]["time"]) + 1

    def at(time: float) -> float:
        return START + (END - START) * time / seconds

    picture = Picture(WIDTH, HEIGHT, "Versions appear while training goes on, and a server follows")
    picture.text(
        START,
        26,
        "validation accuracy of each epoch, in %; blue: better than ever before",
        "soft small",
    )
    for y, name, below in (
        (TRAINING, "training", "epochs"),
        (VERSIONS, "versions", "in base_dir"),
        (SERVER, "a server", "answers with"),
    ):
        picture.text(16, y, name, "ink bold")
        picture.text(16, y + 15, below, "soft small")
    exported = {version["epoch"] for version in published}
    for index, epoch in enumerate(epochs):
        x, width = at(epoch["begin"]), at(epoch["end"]) - at(epoch["begin"])
        is_better = index in exported
        picture.rect(x, TRAINING - 16, width - 2, 32, "accent" if is_better else "faint", radius=3)
        text = f"{100 * epoch['val_accuracy']:.1f}"
        classes = "onaccent" if is_better else "soft"
        picture.text(x + width / 2 - 1, TRAINING + 4.5, text, f"{classes} small", "middle")
    for version in published:
        x, y = at(version["time"]), VERSIONS
        end = at(epochs[version["epoch"]]["end"])
        picture.path(f"M{end:.1f} {TRAINING + 17}L{x:.1f} {y - 11}", "accent")
    for answer in answered:
        x = at(answer["time"])
        begin = at(next(v["time"] for v in published if v["version"] == answer["version"]))
        picture.path(f"M{begin:.1f} {VERSIONS + 11}L{x:.1f} {SERVER - 13}", "gray")
    for version in published:
        x = at(version["time"])
        picture.circle(x, VERSIONS, 11, "accent")
        picture.text(x, VERSIONS + 4.5, str(version["version"]), "onaccent bold", "middle")
    spans = pairwise([*answered, {"version": None, "time": seconds}])
    for answer, following in spans:
        x, width = at(answer["time"]), at(following["time"]) - at(answer["time"])
        picture.rect(x, SERVER - 12, width - 2, 24, "pale", radius=3)
        name = f"version {answer['version']}" if width > 82 else str(answer["version"])
        picture.text(x + 8, SERVER + 4.5, name, "ink bold")
    for tick in range(0, math.ceil(seconds), 2 if seconds < 30 else 5):
        picture.line(at(tick), AXIS - 12, at(tick), AXIS - 6, "gray")
        picture.text(at(tick), AXIS + 8, f"{tick} s", "soft small", "middle")
    picture.line(START, AXIS - 12, END, AXIS - 12, "gray")
    picture.save(HERE / "strip.svg")


if __name__ == "__main__":
    main()
