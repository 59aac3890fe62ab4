"""What publishing to a bucket costs, beside a plain upload of the same files to the same server.

`python benchmarks/buckets.py [MEGABYTES]`: the server is moto, in a process of its own on
this machine, so that the numbers compare ways of uploading, and say nothing of a network.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import object_stores

from keras_export_callbacks.archive.store.files import KnownFile
from keras_export_callbacks.archive.store.store import open_store

FILES = 8


def make(root: Path, megabytes: int) -> None:
    """A version: a graph, and shards, the first of which training changes."""
    (root / "variables").mkdir(parents=True)
    (root / "saved_model.pb").write_bytes(os.urandom(100_000))
    size = megabytes * 10**6 // FILES
    for index in range(FILES):
        (root / "variables" / f"shard-{index}").write_bytes(os.urandom(size))


def measure(way: str, url: str, root: Path) -> None:
    """Upload the files in one way, and print how long that takes and what it needs."""
    names = sorted(path for path in root.rglob("*") if path.is_file())
    before = peak()
    ways: dict[str, Callable[[], object]] = {
        "plain obstore": lambda: plain_obstore(url, names),
        "plain boto3": lambda: plain_boto3(url, names),
        "this library": lambda: publish(url, root),
    }
    start, cpu = time.perf_counter(), time.process_time()
    ways[way]()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    memory = peak() - before
    print(f"{way:24} {seconds:6.2f} s  {cpu:6.2f} s CPU  {memory:6.0f} MB", flush=True)


def peak() -> float:
    """The most memory that this process had, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


def plain_obstore(url: str, names: list[Path]) -> None:
    """Each file by obstore, in parts."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        url.removeprefix("s3://").partition("/")[0], client_options={"allow_http": True}
    )
    for path in names:
        obstore.put(store, f"plain/{path.name}", path, chunk_size=16 * 2**20, max_concurrency=4)


def plain_boto3(url: str, names: list[Path]) -> None:
    """All files by boto3, four at a time."""
    import boto3

    client = boto3.client("s3")
    bucket = url.removeprefix("s3://").partition("/")[0]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: client.upload_file(str(path), bucket, f"b/{path.name}"), names))


def publish(url: str, root: Path) -> None:
    """A version, and another one of which one shard changed."""
    store = open_store(url)
    for turn in range(2):
        start = time.perf_counter()
        with store.stage() as staged:
            contents = {
                path.relative_to(root).as_posix(): path
                for path in root.rglob("*")
                if path.is_file()
            }
            infos = {name: KnownFile.at(path).info for name, path in contents.items()}
            for name, path in contents.items():
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(path, staged / name)
            if turn:
                (staged / "variables" / "shard-0").unlink()
                (staged / "variables" / "shard-0").write_bytes(os.urandom(1000))
                del infos["variables/shard-0"]
            committing = time.perf_counter()
            store.commit(staged, lambda version: None, infos)
        end = time.perf_counter()
        print(f"  version {turn + 1}: commit {end - committing:.2f} s of {end - start:.2f} s")


def main(megabytes: int) -> None:
    """Each way in a process of its own."""
    server = object_stores.s3()
    os.environ.update(server.environment())
    with TemporaryDirectory(dir=Path.cwd()) as directory:
        root = Path(directory, "version")
        make(root, megabytes)
        for way in ("plain obstore", "plain boto3", "this library"):
            url = f"{server.bucket()}/base"
            sent = server.sent
            subprocess.run([sys.executable, __file__, way, url, str(root)], check=True)
            print(f"  sent {(server.sent - sent) / 1e6:.0f} MB")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measure(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
