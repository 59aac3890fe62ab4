"""What other processes do in a bucket: `python bucket_target.py WHAT URL LEASE COUNT`.

Prints "ready", waits for a line, and then a line for each version published.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import warnings
from collections.abc import Callable

from keras_export_callbacks import ExportDirectory, KeepLatest
from keras_export_callbacks.archive.store.buckets import claims
from keras_export_callbacks.archive.store.store import open_store
from support.places import export

FROZEN = random.Random(0).randbytes(50_000)


def publish(url: str) -> int:
    """Publish a version with files of its own, and one that all share."""
    files = {
        "saved_model.pb": os.urandom(100),
        "variables/frozen": FROZEN,
        "variables/variables.index": os.urandom(1000),
    }
    return export(open_store(url), files).version


def prune(url: str) -> int:
    """Remove all but the newest three."""
    return -sum(ExportDirectory(url).prune(KeepLatest(3)))


def sweep(url: str) -> int:
    """Sweep up what others left."""
    open_store(url).sweep()
    return 0


DOINGS: dict[str, Callable[[str], int]] = {"publish": publish, "prune": prune, "sweep": sweep}


def main(what: str, url: str, lease: str, count: str) -> None:
    """Do it so many times, or for ever if that is 0."""
    claims.LEASE = claims.STAGING_LEASE = float(lease)
    warnings.filterwarnings("ignore", ".*could not be removed")
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(count)) if int(count) else itertools.count():
        done = DOINGS[what](url)
        if what == "publish":
            print(done, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
