"""Writers and readers of one base directory, each a real process, all at the same time."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.serving_oracle import discovered

from keras_export_callbacks import ExportDirectory

pytestmark = pytest.mark.slow

BASE = Path("base")


def counter(start: int = 0) -> Any:
    """A model whose outputs tell how many steps it was trained: twice that, exactly.

    Half of it is in the kernel and half in the bias, so that a mixture of two steps tells
    too. `start` makes the variables of one model differ from those of another all along.
    """
    import keras

    kernel, bias = (keras.initializers.Constant(value) for value in (start, -start))
    dense = keras.layers.Dense(2, kernel_initializer=kernel, bias_initializer=bias)
    model = keras.Sequential([keras.Input((1,)), dense])
    model.compile(
        keras.optimizers.SGD(1.0), lambda _, y: -keras.ops.sum(y, axis=-1), jit_compile=False
    )
    return model


def train(model: Any, steps: int, callbacks: list[Any], epochs: int = 1) -> None:
    ones = np.ones((steps, 1), "float32")
    model.fit(ones, ones, batch_size=1, epochs=epochs, verbose=0, callbacks=callbacks)


def assert_counts(outputs: Any, version: Path) -> None:
    """`outputs` are those of the step that the manifest of `version` tells."""
    step = ExportDirectory(version.parent).record(int(version.name)).step
    assert step is not None
    np.testing.assert_array_equal(outputs, [[2.0 * step] * 2])


def outputs_in_python(version: Path) -> Any:
    import tensorflow as tf

    artifact = tf.saved_model.load(str(version))
    return artifact.serve(tf.ones((1, 1))).numpy()


def outputs_in_c(version: Path) -> Any:
    from keras_export_callbacks.archive.parity.c_library import Session

    return Session(str(version)).run("serve", {"inputs": np.ones((1, 1), "float32")})["output_0"]


def read(outputs_of: Callable[[Path], Any]) -> None:
    """Load each new version as soon as it is there, until standard input is closed.

    As a model server does, load the newest; print the number of each when it is done.
    """
    last: list[Path] = []
    while not select.select([sys.stdin], [], [], 0)[0]:
        newest = discovered(BASE)[-1:]
        if newest != last:
            assert_counts(outputs_of(newest[0]), newest[0])
            print(newest[0].name, flush=True)
            last = newest
    assert ("tensorflow" in sys.modules) == (outputs_of is outputs_in_python)


def write(writer: int) -> None:
    """Export after each of fifty steps, and print the versions that were reported.

    Begins when told to, and goes on after the first one when told so again: from
    then on, no one has anything to do but to export.
    """
    from keras_export_callbacks import ExportEveryN

    # Two that trained the same model the same way would publish it once only.
    model = counter(start=1000 * writer)
    callback = ExportEveryN(BASE, unit="batch", keep=5, log_dir=None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        # TensorFlow's, on Python 3.13.
        warnings.filterwarnings("ignore", ".*___pyct_anno", DeprecationWarning)
        for steps in (1, 49):
            print("ready", flush=True)
            sys.stdin.readline()
            train(model, steps, [callback])
    assert [str(warning.message) for warning in told] == []
    print(*(record.version for record in callback.exports))


@contextmanager
def started(call: str) -> Iterator[subprocess.Popen[str]]:
    """A process that calls a function of this module, for the length of a ``with`` block."""
    with subprocess.Popen(
        [sys.executable, "-c", f"from e2e.test_races import *; {call}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


class Readers:
    """What processes that read have seen, as they tell it.

    Attributes:
        seen: the versions that each of them has loaded.
        one_ended: whether one of them is there no more.
    """

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes
        self.seen: list[list[int]] = [[] for _ in processes]
        self.one_ended = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._listen, args=each) for each in self._pairs()]
        for thread in self._threads:
            thread.start()

    def _pairs(self) -> Iterator[tuple[Any, list[int]]]:
        return zip((process.stdout for process in self._processes), self.seen, strict=True)

    def _listen(self, output: Any, seen: list[int]) -> None:
        for line in output:
            with self._changed:
                seen.append(int(line))
                self._changed.notify_all()
        with self._changed:
            self.one_ended = True
            self._changed.notify_all()

    def wait_for(self, version: int) -> None:
        """Return when each has seen that version or a later one, or one has ended."""

        def is_seen() -> bool:
            return all(seen and seen[-1] >= version for seen in self.seen)

        with self._changed:
            self._changed.wait_for(lambda: self.one_ended or version < 1 or is_seen())

    def finish(self) -> list[int]:
        """Let them end, and return how they did."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for thread in self._threads:
            thread.join()
        return [process.wait() for process in self._processes]


# So far may the writer be ahead of the slowest reader: what is the newest when that reader
# looks is never removed before it is loaded. A server must live with that; here it would hide
# what must not happen.
AHEAD = 20
ENOUGH = 100


def test_readers_beside_a_writer_load_whatever_they_see() -> None:
    import keras

    from keras_export_callbacks import ExportEveryN

    def pace(batch: int, logs: Any) -> None:
        readers.wait_for(int(model.optimizer.iterations) - AHEAD)
        is_enough = all(len(seen) >= ENOUGH for seen in readers.seen)
        model.stop_training = is_enough or readers.one_ended

    model = counter()
    callback = ExportEveryN(BASE, unit="batch", keep=AHEAD + 1, log_dir=None)
    with started("read(outputs_in_python)") as python, started("read(outputs_in_c)") as c:
        readers = Readers([python, c])
        pacing = keras.callbacks.LambdaCallback(on_train_batch_end=pace)
        train(model, 100, [pacing, callback], epochs=sys.maxsize)
        assert readers.finish() == [0, 0]
    for seen in readers.seen:
        assert len(seen) >= ENOUGH
        assert seen == sorted(set(seen))
    published = [record.version for record in callback.exports]
    assert published == list(range(1, len(published) + 1))
    assert ExportDirectory(BASE).versions() == published[-AHEAD - 1 :]


def test_four_processes_train_and_export_into_one_directory() -> None:
    with ExitStack() as stack:
        writers = [stack.enter_context(started(f"write({writer})")) for writer in range(4)]
        for _ in range(2):
            begin_together(writers)
        printed = [writer.communicate()[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    reported = [[int(version) for version in each.split()] for each in printed]
    assert all(versions == sorted(versions) for versions in reported)
    assert sorted(version for each in reported for version in each) == list(range(1, 201))
    assert sorted(os.listdir(BASE)) == ["196", "197", "198", "199", "200"]
    for version in discovered(BASE):
        assert ExportDirectory(BASE).verify(int(version.name)) == []
        assert_counts(outputs_in_python(version), version)


def begin_together(processes: list[subprocess.Popen[str]]) -> None:
    """Wait until all of them are ready, then tell them so."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
