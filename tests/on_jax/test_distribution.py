"""Variables on several devices, and in several processes, on JAX."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
from support.jax_distributed import (
    OPTIONS,
    batches,
    build,
    data_parallel,
    model_parallel,
    told,
    train_on,
)
from support.processes import free_port

from keras_export_callbacks import ExportDirectory, Exporter, ExportEveryN, ExportOnImprove


@pytest.mark.skipif(len(jax.devices()) < 4, reason="needs four devices")
@pytest.mark.parametrize(
    ("distribution", "kernel"), [(data_parallel, (None, None)), (model_parallel, (None, "model"))]
)
def test_variables_on_several_devices_are_exported_and_restored(
    distribution: Callable[[list[str]], Any], kernel: tuple[Any, ...]
) -> None:
    with distribution(keras.distribution.list_devices()).scope():
        (x, y), model = batches(), build()
        best = ExportOnImprove("best", "loss", log_dir=None, sample_inputs=x[:8])
        steps = ExportEveryN("steps", n=3, unit="batch", log_dir=None)
        model.fit(x, y, epochs=3, callbacks=[best, steps], **OPTIONS)
        array = model.layers[0].kernel.value
        assert len(array.sharding.device_set) == 4
        assert tuple(array.sharding.spec) == kernel
        revived = tf.saved_model.load(str(best.last_export.path))
        np.testing.assert_allclose(revived.serve(x), model.predict(x, verbose=0), 1e-5, 1e-6)
        train_on(model, best.last_export.path)
    assert told(steps) == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert_all_verify("best", "steps")


def assert_all_verify(*names: str) -> None:
    for directory in map(ExportDirectory, names):
        assert directory.versions()
        assert all(directory.verify(version) == [] for version in directory.versions())


@contextlib.contextmanager
def two_processes(*arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that train together, for the length of a ``with`` block."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",  # Two processes cannot train on one GPU.
    }
    command = [sys.executable, "-m", "support.jax_distributed"]
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [*command, str(rank), port, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def next_value(process: subprocess.Popen[str]) -> Any:
    """The next value that a process tells. Gloo says something, too."""
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith("[Gloo]"):
            return json.loads(line)
    _, errors = process.communicate()
    pytest.fail(errors[-3000:])


def assert_ends_together(killed: subprocess.Popen[str], other: subprocess.Popen[str]) -> None:
    killed.kill()
    _, errors = other.communicate()
    assert other.returncode not in (0, None)
    assert "Gloo" in errors
    assert_all_verify("endless")
    # Another writer removes what was not published.
    with Exporter("endless", build(), log_dir=None) as exporter:
        assert exporter.export().result().version > 3
    assert list(Path("endless").glob(".staging/*")) == []


def test_the_first_of_two_processes_decides_and_publishes() -> None:
    with two_processes() as (first, second):
        for process in (first, second):
            refused = next_value(process)
            assert "is spread over several processes" in refused
            assert "DataParallel" in refused
        steps = [[1, 3], [2, 6], [3, 9], [4, 12]]
        assert next_value(first) == [[[1, 4], [2, 8]], steps]
        assert next_value(second) == [[], []]
        assert not os.path.exists("spread") or not ExportDirectory("spread").versions()
        assert_all_verify("best", "steps")
        assert ExportDirectory("best").versions() == [1, 2]
        assert ExportDirectory("steps").versions() == [1, 2, 3, 4]
        while next_value(first) != 3:
            pass
        assert_ends_together(killed=second, other=first)


def test_a_killed_publisher_ends_the_other_process() -> None:
    with two_processes("killed") as (first, second):
        while next_value(first) != 3:
            pass
        assert_ends_together(killed=first, other=second)
