"""The process that loads an artifact in C ends, whatever happens."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.gates import exporter
from support.models import classifier

from keras_export_callbacks import (
    ExportDirectory,
    ExportError,
)
from keras_export_callbacks.archive.parity import c_library

SLOW = """
import os, subprocess, sys
import keras, tensorflow as tf
from keras_export_callbacks import Exporter
from keras_export_callbacks.publisher import Reason

class Endless(keras.layers.Layer):
    def call(self, inputs):
        # For ever in the other process, which finds a file there.
        go_on = lambda x: tf.reduce_any(tf.io.matching_files(tf.constant(sys.argv[1])) != "")
        return tf.while_loop(go_on, lambda x: (x + 1.0,), (inputs,))[0]

inputs = keras.Input((2,))
model = keras.Model(inputs, Endless()(inputs))
exporter = Exporter("base", model, log_dir=None, sample_inputs=tf.ones((1, 2)))
pipeline = exporter._pipeline
pipeline.prepare()
held = pipeline.hold()
held.result()
open(sys.argv[1], "w").close()
pipeline.submit(pipeline.moment(None, {}), Reason(""), held).result()
"""


@pytest.mark.slow
def test_a_comparison_ends_with_the_process_that_asked_for_it() -> None:
    command = [sys.executable, "-c", SLOW, str(Path("there").absolute())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        while not (found := comparisons(process.pid)):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    for child in found:
        while Path(f"/proc/{child}").exists():
            time.sleep(0.05)
    assert not ExportDirectory("base").versions()


def comparisons(parent: int) -> list[int]:
    """The processes that run an artifact for `parent`, and have loaded TensorFlow."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"\nPPid:\t{parent}\n" in status.read_text():
                loaded = (status.parent / "maps").read_text()
                found += [int(status.parent.name)] * ("libtensorflow_cc" in loaded)
    return found


def test_an_artifact_that_never_answers_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(c_library, "LIMIT", 0)
    with exporter(classifier(), on_error="warn") as gated:
        failed = gated.export().exception()
        with pytest.warns(UserWarning, match="took longer than 0 seconds"):
            gated.wait()
    assert isinstance(failed, ExportError)
    assert not ExportDirectory("base").versions()
