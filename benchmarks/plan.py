"""What is measured: models, methods and jobs. This module does not import TensorFlow."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import median

# The measurements of one export, epoch or round, by name. Times are in seconds.
Sample = dict[str, float]

MODELS = {
    "dense": "small dense net",
    "mobilenet": "MobileNetV2",
    "wide": "wide dense net, > 1 GB with Adam",
    "frozen": "MobileNetV2, frozen base, trained head",
}

METHODS = {
    "ours": "this library",
    "ours-sample": "this library, with `sample_inputs`",
    "ours-inference": "this library, `serve` only",
    "reference": "ExportArchive of Keras",
    "reference-again": "ExportArchive of Keras, reused",
    "model-export": "model.export",
    "model-checkpoint": "ModelCheckpoint, .keras",
    "orbax": "OrbaxCheckpoint, background",
    "plain": "plain copy; write and fsync on a thread",
}

# Not a method of exporting, but the least work: copy the variables, then write and fsync them.
FLOOR = "floor"
EPOCHS = "epochs"

# Methods whose epochs are not measured.
_EXPORTS_ONLY = {"ours-sample", "ours-inference", "plain"}

_PACKAGES = {"orbax": "orbax-checkpoint"}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        exports: Exports of this library in each process. Their growth is measured.
        others: Exports of each other method, in one process.
        processes: Processes for this library. Each has only one first export.
        rounds: Rounds of `FLOOR`. Each also has an export of this library.
        pairs: Pairs of an epoch with and an epoch without an export of this library.
            The first pair includes the tracing.
        other_pairs: Pairs of epochs for each other method.
        steps: Training steps in each epoch.
    """

    exports: int = 50
    others: int = 5
    processes: int = 2
    rounds: int = 20
    pairs: int = 21
    other_pairs: int = 3
    steps: int = 50


QUICK = Size(exports=4, others=3, processes=1, rounds=3, pairs=4, steps=10)


@dataclass(frozen=True)
class Job:
    """One method on one model, measured in processes of its own.

    Attributes:
        subject: String. The name of a model, or `EPOCHS`.
        method: String. The name of a method, or `FLOOR`.
    """

    subject: str
    method: str

    @property
    def name(self) -> str:
        return f"{self.subject}/{self.method}"

    def missing(self) -> str | None:
        """Return the package that this job needs, if it is not installed, else None."""
        package = _PACKAGES.get(self.method)
        try:
            if package is not None:
                version(package)
        except PackageNotFoundError:
            return package
        return None

    def samples(self, size: Size) -> list[int]:
        """Return how many exports, rounds or pairs of epochs each process measures."""
        if self.subject == EPOCHS:
            return [size.pairs if self.method == "ours" else size.other_pairs]
        if self.method == FLOOR:
            return [size.rounds]
        if self.method == "ours":
            return [size.exports] * size.processes
        return [size.others]


def jobs(patterns: Sequence[str]) -> list[Job]:
    """Return all jobs whose name matches a pattern, such as ``mobilenet/*``."""
    found = [Job(model, method) for model in MODELS for method in [*METHODS, FLOOR]]
    found += [Job(EPOCHS, method) for method in METHODS if method not in _EXPORTS_ONLY]
    return [job for job in found if any(fnmatch.fnmatch(job.name, p) for p in patterns)]


@dataclass
class Result:
    """What the processes of one job measured.

    Attributes:
        runs: The samples of each process, in the order they were taken.
        problem: String. The reason why samples are missing, or None.
        failed: Bool. Whether the problem is an error. A skipped job is not an error.
    """

    job: Job
    runs: list[list[Sample]]
    problem: str | None = None
    failed: bool = False

    def first(self, what: str) -> float | None:
        """Return the median of the first samples of all processes."""
        return _median([run[0][what] for run in self.runs if run and what in run[0]])

    def later(self, what: str) -> float | None:
        """Return the median of all samples, without the first of each process."""
        return _median([sample[what] for run in self.runs for sample in run[1:] if what in sample])

    def growth(self, what: str) -> float | None:
        """Return the median of exports 41 to 50, divided by the median of exports 2 to 11.

        Processes with fewer than 50 exports do not count.
        """
        runs = [[sample[what] for sample in run if what in sample] for run in self.runs]
        long = [values for values in runs if len(values) >= 50]
        early = _median([value for values in long for value in values[1:11]])
        late = _median([value for values in long for value in values[40:50]])
        return ratio(late, early)


def ratio(above: float | None, below: float | None) -> float | None:
    """Return `above / below`, or None if there is no quotient."""
    return above / below if above is not None and below else None


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
