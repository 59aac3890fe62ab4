"""Draw `terminal.svg`: what a fit and `keras-exports list` print.

Each command runs in a new directory. All that it prints is drawn, except empty lines and the
log of TensorFlow. The colors are added here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from svg import MONO, Picture

HERE = Path(__file__).parent
COMMANDS = (
    'grep "ExportOnImprove(" train.py',
    "python train.py",
    "keras-exports list served/digits",
)
# In pixels. A font of this size is 0.6 to 0.61 times as wide.
SIZE, ADVANCE, LEADING, MARGIN = 11.5, 7.0, 18, 16


def main() -> None:
    """Run the commands and draw them."""
    # The lines show this path. A random one would be longer.
    work = Path(tempfile.gettempdir(), "demo")
    work.mkdir()
    try:
        for name in ("train.py", "digits.py"):
            shutil.copy(HERE / name, work)
        blocks = [(f"$ {command}", *_output(command, work), "") for command in COMMANDS]
    finally:
        shutil.rmtree(work)
    lines = [line for block in blocks for line in block][:-1]
    width = round(ADVANCE * max(map(len, lines))) + 2 * MARGIN
    height = LEADING * len(lines) + 2 * MARGIN
    title = "A fit with ExportOnImprove, and the versions that it exported"
    picture = Picture(width, height, title, dark=True, font=f"{SIZE}px {MONO}")
    for index, line in enumerate(lines, 1):
        picture.text(MARGIN, MARGIN + LEADING * index - 5, line, _classes(line))
    picture.save(HERE / "terminal.svg")


def _output(command: str, directory: Path) -> list[str]:
    """Return the lines that a command prints, without empty ones."""
    scripts = sysconfig.get_path("scripts")
    environment = {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
    }
    done = subprocess.run(
        shlex.split(command),
        cwd=directory,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # TensorFlow's log.
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if line.strip()]


def _classes(line: str) -> str:
    """Return how a line is drawn: what the user types, and what this library says, stand out."""
    if line.startswith("$"):
        return "ink bold"
    if re.search("exported version|newest|^ +Export", line):
        return "accent"
    return "soft"


if __name__ == "__main__":
    main()
