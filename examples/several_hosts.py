"""Train one model in two processes, as on two hosts. The first process publishes the versions.

Run it with ``python examples/several_hosts.py`` after ``pip install
"keras-export-callbacks[examples,jax]"``; it takes about half a minute. It starts both
processes. On hosts of your own, start the same script on each one: the arguments are
the number of the host, from 0, and the address of host 0.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_export_callbacks import ExportDirectory

BASE = "served/several_hosts"
HOSTS = 2


def train(host: int, address: str) -> None:
    import keras
    from sklearn.datasets import load_digits

    from keras_export_callbacks import ExportEveryN, ExportOnImprove

    keras.distribution.initialize(address, HOSTS, host)
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    keras.utils.set_random_seed(0)  # All hosts begin with the same weights.
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    best = ExportOnImprove(BASE, "val_accuracy", baseline=0.0, verbose=1)
    by_step = ExportEveryN(f"{BASE}_by_step", n=10, unit="batch", keep=2)
    model.fit(
        images[host:1500:HOSTS],  # Each host has a part of the data.
        labels[host:1500:HOSTS],
        batch_size=50,
        epochs=4,
        verbose=0,
        validation_data=(images[1500:], labels[1500:]),
        callbacks=[best, by_step],
    )
    print(f"host {host} published {len(best.exports)} of the best, and by step "
          f"{[record.step for record in by_step.exports]}", flush=True)  # fmt: skip


def main() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, __file__]
    shared = os.environ | {"JAX_PLATFORMS": "cpu"}  # Two processes cannot train on one GPU.
    hosts = [subprocess.Popen([*command, str(host), address], env=shared) for host in range(HOSTS)]
    codes = [host.wait() for host in hosts]
    if any(codes):
        sys.exit("A host failed.")
    for base in (BASE, f"{BASE}_by_step"):
        directory = ExportDirectory(base)
        problems = {version: directory.verify(version) for version in directory.versions()}
        print(f"{base}: versions with their problems: {problems}")


if __name__ == "__main__":
    main() if len(sys.argv) == 1 else train(int(sys.argv[1]), sys.argv[2])
