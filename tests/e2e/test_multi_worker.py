"""Two machines, which are two processes here, and a training loop of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.artifacts import checkpoint
from support.processes import free_port

from keras_export_callbacks import ExportDirectory

TRAIN = """
import json, os, signal, sys
sys.path[:] = json.loads(sys.argv[1])
import keras, numpy as np, tensorflow as tf
from keras_export_callbacks import Exporter

index, dies_in = json.loads(os.environ["TF_CONFIG"])["task"]["index"], int(sys.argv[2])
strategy = tf.distribute.MultiWorkerMirroredStrategy()
keras.utils.set_random_seed(0)
with strategy.scope():
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
x = np.random.default_rng(index).normal(size=(16, 4)).astype("float32")

def replica_step():
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x, training=True) - 1) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    context = tf.distribute.get_replica_context()
    gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables))

step = tf.function(lambda: strategy.run(replica_step))
with Exporter("base", model, log_dir=None) as exporter:
    for epoch in range(3):
        step()
        if epoch == dies_in and index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        future = exporter.export(epoch=epoch)
        print("cancelled" if future.cancelled() else "published", flush=True)
        values = [variable.numpy() for variable in model.variables]
        np.savez(f"values_{epoch}_{index}.npz", *values)
"""


def start(dies_in: int = -1) -> list[subprocess.Popen[str]]:
    workers = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    configs = [
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        for index in range(2)
    ]
    return [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, json.dumps(sys.path), str(dies_in)],
            env=os.environ | {"TF_CONFIG": json.dumps(config)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for config in configs
    ]


def values(epoch: int, index: int) -> list[Any]:
    with np.load(f"values_{epoch}_{index}.npz") as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.mark.slow
def test_the_chief_publishes_what_the_loop_computed() -> None:
    processes = start()
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert [out.split() for out, _ in printed] == [["published"] * 3, ["cancelled"] * 3]
    directory = ExportDirectory("base")
    assert directory.versions() == [1, 2, 3]
    for epoch, version in enumerate(directory.versions()):
        assert directory.verify(version) == []
        stored = list(checkpoint(directory.record(version).path).values())
        # Of batch statistics each worker has its own; all else they have in common.
        for ours in values(epoch, 0):
            assert any(np.array_equal(ours, array) for array in stored)
        for index in (0, 1, 2, 3, 6, 7):
            np.testing.assert_array_equal(values(epoch, 0)[index], values(epoch, 1)[index])
    assert sorted(path.name for path in Path("base").iterdir()) == ["1", "2", "3"]


@pytest.mark.slow
def test_when_a_worker_is_killed_the_other_ends_with_an_error() -> None:
    chief, worker = start(dies_in=1)
    worker.communicate()
    chief.communicate()
    assert chief.returncode != 0
    directory = ExportDirectory("base")
    assert set(directory.versions()) <= {1, 2}
    assert [directory.verify(version) for version in directory.versions()] == [
        [] for _ in directory.versions()
    ]
    assert not Path("base/.staging").exists()


PARAMETER_SERVER = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
import keras, tensorflow as tf
from keras_export_callbacks import ExportError, Exporter

spec = tf.train.ClusterSpec(json.loads(sys.argv[2]))
servers = [tf.distribute.Server(spec, job_name=job) for job in ("worker", "ps")]
resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(spec, rpc_layer="grpc")
with tf.distribute.ParameterServerStrategy(resolver).scope():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
try:
    Exporter("base", model)
except ExportError as error:
    print(error, flush=True)
os._exit(0)  # The servers have no end.
"""


@pytest.mark.slow
def test_a_parameter_server_strategy_is_refused() -> None:
    cluster = {job: [f"127.0.0.1:{free_port()}"] for job in ("worker", "ps")}
    command = [sys.executable, "-c", PARAMETER_SERVER, json.dumps(sys.path), json.dumps(cluster)]
    printed = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
    assert "trained under a ParameterServerStrategy" in printed
    assert not Path("base").exists()
