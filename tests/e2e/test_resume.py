"""A fit that is killed and started again publishes what an uninterrupted one does."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.resume_target import EPOCHS, train

from keras_export_callbacks import ExportDirectory

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["keras_export_callbacks.callbacks"])


def run(*args: Any) -> int:
    process = PROCESSES.Process(target=train, args=args)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def published(base: str, name: str) -> list[tuple[Any, ...]]:
    """What each version holds, in order."""
    directory = ExportDirectory(Path(base, name))
    versions = directory.versions()
    assert [directory.verify(version) for version in versions] == [[]] * len(versions)
    return [
        (record.version, record.epoch, record.step, record.value, record.metrics)
        for record in directory.records()
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "hook"), [(0, "epoch"), (2, "epoch"), (3, "batch")])
def test_a_killed_fit_goes_on_as_if_it_had_not_been(epoch: int, hook: str) -> None:
    assert run("whole") == 0
    assert run("killed", epoch, hook) == -signal.SIGKILL
    assert run("killed") == 0
    for name in ("every", "steps", "best"):
        assert published("killed", name) == published("whole", name)
    assert len(published("whole", "every")) == EPOCHS
    assert not np.isnan([value for *_, value, _ in published("whole", "best")]).any()
