"""Killed at any moment, a writer leaves no bad version behind."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.kill_target import STEPS, train
from support.loading import load

from keras_export_callbacks import ExportDirectory

# Imported once by a server process, from which each process to kill is forked.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["keras_export_callbacks.callbacks"])

RANDOM_KILLS = int(os.environ.get("RANDOM_KILLS", "12"))


class Witness:
    """Looks at the base directories after each kill, and remembers what it saw."""

    def __init__(self, root: Path) -> None:
        self.directories = [ExportDirectory(root / name) for name in ("every", "best")]
        self.seen: list[dict[int, str]] = [{}, {}]
        self.kills = 0
        self.checked = 0
        # An executor says so when its process dies; a pool would wait for ever.
        self.loader = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def look(self) -> None:
        for directory, seen in zip(self.directories, self.seen, strict=True):
            for version in directory.versions():
                assert directory.verify(version) == []
                record = directory.record(version)
                self.loader.submit(load, str(record.path)).result()
                assert seen.setdefault(version, record.created) == record.created
                self.checked += 1
            gone = seen.keys() - directory.versions()
            assert all(version < max(seen) for version in gone), "the newest was removed"
        values = [record.value for record in self.directories[1].records()]
        assert values == sorted(values, reverse=True), "a worse model was published"  # type: ignore[type-var]

    def published(self) -> list[int]:
        return [max(directory.versions(), default=0) for directory in self.directories]

    def finish(self) -> None:
        """The next run exports, and clears what the killed ones left."""
        before = self.published()
        assert run(self, epochs=60).exitcode == 0
        self.look()
        assert self.published()[0] > before[0]
        for directory in self.directories:
            names = sorted(path.name for path in directory.path.iterdir())
            assert names == sorted(map(str, directory.versions())), "something stale is left"
        print(f"{self.kills} kills, {self.checked} versions checked and loaded")


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    witness = Witness(tmp_path)
    with witness.loader:
        yield witness


def run(witness: Witness, kill_after: float | None = None, **options: Any) -> Any:
    process = PROCESSES.Process(
        target=train, args=(str(witness.directories[0].path.parent),), kwargs=options
    )
    process.start()
    process.join(kill_after)
    if process.exitcode is None:
        process.kill()
        process.join()
    witness.kills += process.exitcode == -signal.SIGKILL
    return process


@pytest.mark.slow
def test_at_each_step_of_an_export_and_a_removal(witness: Witness) -> None:
    for step, before in itertools.product(STEPS, (True, False)):
        # Late enough to be in the midst of exports and removals, where that is possible.
        count = 1 if step == "save the graph" else 7
        process = run(witness, epochs=60, die=(step, before, count))
        assert process.exitcode == -signal.SIGKILL, f"never came to: {step}"
        witness.look()
    witness.finish()


@pytest.mark.slow
@pytest.mark.zoo
def test_at_random_times(witness: Witness) -> None:
    """RANDOM_KILLS=200 is the long run."""
    moments = random.Random(0)
    while witness.kills < RANDOM_KILLS:
        run(witness, kill_after=moments.uniform(0.5, 4))
        witness.look()
    witness.finish()
