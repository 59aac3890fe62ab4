"""An export is of one moment, while training goes on and the write is held up on purpose."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.cases import mostly_zoo
from support.models import assert_equal_state, classifier, data, state
from support.processes import run_python

from keras_export_callbacks import Exporter, publisher
from keras_export_callbacks.archive.backends import tensorflow as snapshot


def exported_state(path: Any) -> list[Any]:
    revived = tf.saved_model.load(str(path))
    return [v.numpy() for v in [*revived.variables, *revived.optimizer_variables]]


@pytest.mark.parametrize(
    "options",
    mostly_zoo(
        [
            {"jit_compile": False},
            {"jit_compile": True},
            {"jit_compile": False, "steps_per_execution": 4},
            {"jit_compile": True, "steps_per_execution": 4},
            {"run_eagerly": True},
        ],
        {"jit_compile": False},
        {"jit_compile": True, "steps_per_execution": 4},
    ),
    ids=str,
)
def test_snapshots_stay_as_they_were(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    write = publisher.write

    def held_up(*args: Any) -> Any:
        go_on.wait()
        return write(*args)

    model = classifier(**options)
    x, y = data(64)
    # The first export reads variables one by one, the later ones in traced calls.
    monkeypatch.setattr(snapshot, "_AT_ONCE", 7)
    with Exporter("base", model, log_dir=None) as exporter:
        model.fit(x, y, batch_size=4, verbose=0)
        exporter.export().result()
        monkeypatch.setattr(publisher, "write", held_up)
        expected = []
        for _ in range(2):
            model.fit(x, y, batch_size=4, epochs=2, verbose=0)
            expected.append(state(model))
            exporter.export()
        model.fit(x, y, batch_size=4, epochs=2, verbose=0)
        assert len(exporter.exports) == 1
        go_on.set()
    assert not np.array_equal(expected[1][0], state(model)[0])
    for record, then in zip(exporter.exports[1:], expected, strict=True):
        assert_equal_state(exported_state(record.path), then)


# Logical devices can only be made before TensorFlow starts.
MIRRORED = """
import sys, threading
import tensorflow as tf
devices = int(sys.argv[1])
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
import keras, numpy as np
from support.models import classifier, data, state
from keras_export_callbacks import Exporter, publisher

with tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)]).scope():
    model = classifier(jit_compile=False)
x, y = data(64)
go_on, write = threading.Event(), publisher.write
exporter = Exporter("base", model, log_dir=None)
model.fit(x, y, batch_size=8, verbose=0)
exporter.export().result()
publisher.write = lambda *args: go_on.wait() and write(*args)
for name in ("first", "second"):
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    np.savez(f"{name}.npz", *state(model))
    exporter.export()
model.fit(x, y, batch_size=8, epochs=2, verbose=0)
go_on.set()
exporter.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", mostly_zoo([2, 4], 2))
def test_snapshots_under_mirrored_strategy_stay_as_they_were(devices: int) -> None:
    run_python(MIRRORED, str(devices))
    x, _ = data(64)
    for version, name in [(2, "first"), (3, "second")]:
        with np.load(f"{name}.npz") as then:
            reported = list(then.values())
        assert_equal_state(exported_state(f"base/{version}"), reported)
        # Served without a strategy, it is the model with the values it reports. Keras's own
        # `predict` is not: each replica uses its own batch statistics there, not their mean.
        model = classifier(compiled=False)
        for variable, value in zip(model.variables, reported, strict=False):
            variable.assign(value)
        served = tf.saved_model.load(f"base/{version}")
        np.testing.assert_array_equal(served.serve(x), model(x, training=False))
