"""Write `strip.json`: when a fit exported versions, and when a server answered with each.

Usage: python strip_run.py

The server is another process. It looks for a new version every second, as TensorFlow
Serving does, loads the newest, and answers with it.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from digits import classifier, digits

from keras_export_callbacks import ExportDirectory, ExportOnImprove, ExportRecord

HERE = Path(__file__).parent
EPOCHS = 10
POLL_SECONDS = 1.0


class Clock(keras.callbacks.Callback):
    """Notes when each epoch begins and ends, and what validation found."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict[str, float]] = []
        self._begin = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begin = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        value = round(logs["val_accuracy"], 4)
        self.epochs.append({"begin": self._begin, "end": time.monotonic(), "val_accuracy": value})


def train() -> None:
    """Train beside a server, and write all times, in seconds since training began."""
    x, y, val_x, val_y = digits()
    clock = Clock()
    published: list[dict[str, Any]] = []

    def note(record: ExportRecord) -> None:
        published.append(
            {"version": record.version, "epoch": record.epoch, "time": time.monotonic()}
        )

    with tempfile.TemporaryDirectory() as work:
        base = Path(work, "digits")
        base.mkdir()
        export = ExportOnImprove(base, "val_accuracy", log_dir=None, on_export=note)
        with subprocess.Popen(
            [sys.executable, __file__, str(base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            assert server.stdout is not None
            server.stdout.readline()  # It is ready.
            classifier(learning_rate=0.001).fit(
                x,
                y,
                validation_data=(val_x, val_y),
                epochs=EPOCHS,
                batch_size=2,
                verbose=2,
                callbacks=[clock, export],
            )
            answers, _ = server.communicate()
        if server.returncode:
            sys.exit("The server failed.")
    start = clock.epochs[0]["begin"]
    content = {
        "epochs": clock.epochs,
        "published": published,
        "answered": [json.loads(line) for line in answers.splitlines()],
    }
    for event in itertools.chain.from_iterable(content.values()):
        for name in event.keys() & {"begin", "end", "time"}:
            event[name] = round(event[name] - start, 3)
    (HERE / "strip.json").write_text(json.dumps(content, indent=1) + "\n")


def serve(base: Path) -> None:
    """Print when each version first answered, until standard input ends and all is seen."""
    _, _, images, _ = digits()
    directory = ExportDirectory(base)
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    print("ready", flush=True)
    answering, is_last = 0, False
    while not is_last:
        is_last = ended.is_set()
        newest = directory.latest()
        if newest is not None and newest.version > answering:
            answering = newest.version
            loaded = tf.saved_model.load(str(newest.path))
            loaded.serve(images)
            print(json.dumps({"version": answering, "time": time.monotonic()}), flush=True)
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(Path(sys.argv[1]))
    else:
        train()
