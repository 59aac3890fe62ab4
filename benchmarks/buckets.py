"""Measure what an export to a bucket costs, beside uploads of the same files to the same server.

Usage: buckets.py [MEGABYTES] [s3|azure]

The server is moto (S3) or azurite (Azure) on this machine. So the figures compare ways of
uploading, and say nothing about a network. moto copies each byte of an object that it is told to
copy, with its one processor. azurite only refers to the object. Each way runs in its own process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

EXPORTS = 4
WAYS = {
    "s3": ("this library", "write, then sync", "obstore alone", "boto3 alone"),
    "azure": ("this library", "obstore alone"),  # boto3 is for S3.
}


def main(megabytes: str = "400", kind: str = "s3") -> None:
    """Run every way with every model, and print a table."""
    from support import object_stores

    server = object_stores.SERVERS[kind]()
    environment = os.environ | server.environment() | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    print("| model | way | export | seconds | CPU seconds | sent MB | memory MB |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    for model in ("net", "frozen"):
        for way in WAYS[kind]:
            command = [sys.executable, __file__, model, way, server.bucket(), megabytes]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=environment
            ) as process:
                assert process.stdout is not None
                sent = server.sent
                for line in process.stdout:  # One for each export.
                    row = line.strip().split()
                    counted = f"{(server.sent - sent) / 1e6:.0f}" if kind == "s3" else "–"
                    row.insert(3, counted)
                    print(f"| {model} | {way} | {' | '.join(row)} |", flush=True)
                    sent = server.sent
            assert process.returncode == 0


def measure(model_name: str, way: str, url: str, megabytes: int) -> None:
    """Export several times in one way, with a training step before each."""
    from keras_export_callbacks import Exporter

    model, step = _MODELS[model_name](megabytes)
    with TemporaryDirectory(dir=Path.cwd()) as directory:
        local = Path(directory, "versions")
        base_dir = f"{url}/base" if way == "this library" else local
        with Exporter(base_dir, model, log_dir=None, keep=2) as exporter:
            for number in range(1, EXPORTS + 1):
                step()
                if way in ("this library", "write, then sync"):
                    with measured(number):
                        record = exporter.export().result()
                        if way == "write, then sync":
                            boto3_alone(url, Path(record.path))
                else:
                    record = exporter.export().result()
                    with measured(number):
                        {"obstore alone": obstore_alone, "boto3 alone": boto3_alone}[way](
                            url, Path(record.path)
                        )


@contextmanager
def measured(number: int) -> Iterator[None]:
    """Print the time, the processor time and the additional memory of a block."""
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    memory = _memory("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    yield
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{number} {seconds:.2f} {cpu:.2f} {_memory('VmHWM') - memory:.0f}", flush=True)


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))


def _files(version: Path) -> list[Path]:
    return sorted(path for path in version.rglob("*") if path.is_file())


def obstore_alone(url: str, version: Path) -> None:
    """Upload each file with obstore, in parts."""
    import obstore
    from obstore.store import AzureStore, S3Store

    scheme, _, name = url.partition("://")
    store = {"s3": S3Store, "az": AzureStore}[scheme](name, client_options={"allow_http": True})
    for path in _files(version):
        key = f"alone/{path.relative_to(version.parent)}"
        obstore.put(store, key, path, chunk_size=16 * 2**20, max_concurrency=6)


def boto3_alone(url: str, version: Path) -> None:
    """Upload all files with boto3, as `aws s3 sync` does with a new directory."""
    import boto3

    client = boto3.client("s3")
    name = url.removeprefix("s3://")
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda path: client.upload_file(
                    str(path), name, f"sync/{path.relative_to(version.parent)}"
                ),
                _files(version),
            )
        )


def _net(megabytes: int) -> tuple[Any, Callable[[], None]]:
    """Return a model in which everything changes, and a function that changes it."""
    import keras

    units = megabytes * 10**6 // 4 // (2 * 4096)
    layers = [keras.Input((4096,)), *(keras.layers.Dense(size) for size in (units, 4096))]
    model = keras.Sequential(layers)
    return _compiled(model)


def _frozen(megabytes: int) -> tuple[Any, Callable[[], None]]:
    """Return a model of which 90 % is frozen."""
    import keras

    units = megabytes * 10**6 // 4 // 4096 * 9 // 10
    base = keras.layers.Dense(units, trainable=False)
    head = keras.layers.Dense(4096 // 9)
    model = keras.Sequential([keras.Input((4096,)), base, head])
    return _compiled(model)


def _compiled(model: Any) -> tuple[Any, Callable[[], None]]:
    import numpy as np

    model.compile("sgd", "mse")
    x, y = np.ones((2, *model.input_shape[1:])), np.zeros((2, *model.output_shape[1:]))
    return model, lambda: model.train_on_batch(x, y)


_MODELS = {"net": _net, "frozen": _frozen}

if __name__ == "__main__":
    if len(sys.argv) == 5:
        measure(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main(*sys.argv[1:])
