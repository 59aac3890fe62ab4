"""What is measured: models, methods, and the jobs they make. Imports no TensorFlow."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import median

# One export, epoch or round: what was measured, by name; times in seconds.
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
    "reference-again": "the same one, written again",
    "model-export": "model.export",
    "model-checkpoint": "ModelCheckpoint, .keras",
    "orbax": "OrbaxCheckpoint, background",
}

# No method of exporting: one memory copy of the variables, and writing and fsyncing them.
FLOOR = "floor"
EPOCHS = "epochs"

# Variants of ours whose epochs are not measured.
_EXPORTS_ONLY = {"ours-sample", "ours-inference"}

_PACKAGES = {"orbax": "orbax-checkpoint"}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        exports: of ours, in each process; growth is taken over them.
        others: exports of each other method, in one process.
        processes: for ours, because each has one first export only.
        rounds: of writing the floor, each beside an export of ours.
        pairs: of epochs with and without an export of ours; in the first, all is traced.
        other_pairs: the same for each other method.
        steps: in each epoch.
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
        subject: the name of a model, or `EPOCHS`.
        method: the name of a method, or `FLOOR`.
    """

    subject: str
    method: str

    @property
    def name(self) -> str:
        return f"{self.subject}/{self.method}"

    def missing(self) -> str | None:
        """The package that this job needs and that is not installed."""
        package = _PACKAGES.get(self.method)
        try:
            if package is not None:
                version(package)
        except PackageNotFoundError:
            return package
        return None

    def samples(self, size: Size) -> list[int]:
        """How many exports, rounds or epochs each of its processes measures."""
        if self.subject == EPOCHS:
            return [size.pairs if self.method == "ours" else size.other_pairs]
        if self.method == FLOOR:
            return [size.rounds]
        if self.method == "ours":
            return [size.exports] * size.processes
        return [size.others]


def jobs(patterns: Sequence[str]) -> list[Job]:
    """All jobs whose name matches one of the patterns, such as ``mobilenet/*``."""
    found = [Job(model, method) for model in MODELS for method in [*METHODS, FLOOR]]
    found += [Job(EPOCHS, method) for method in METHODS if method not in _EXPORTS_ONLY]
    return [job for job in found if any(fnmatch.fnmatch(job.name, p) for p in patterns)]


@dataclass
class Result:
    """What the processes of one job measured.

    Attributes:
        runs: the samples of each process, in the order they were taken.
        problem: why there are none, or not all.
        failed: whether that is an error, and not what was to be expected.
    """

    job: Job
    runs: list[list[Sample]]
    problem: str | None = None
    failed: bool = False

    def first(self, what: str) -> float | None:
        """The median of the first samples of all processes."""
        return _median([run[0][what] for run in self.runs if run and what in run[0]])

    def later(self, what: str) -> float | None:
        """The median of all samples but the first of each process."""
        return _median([sample[what] for run in self.runs for sample in run[1:] if what in sample])

    def growth(self, what: str) -> float | None:
        """Exports 41 to 50 by exports 2 to 11; medians over all processes that got there."""
        runs = [[sample[what] for sample in run if what in sample] for run in self.runs]
        long = [values for values in runs if len(values) >= 50]
        early = _median([value for values in long for value in values[1:11]])
        late = _median([value for values in long for value in values[40:50]])
        return ratio(late, early)


def ratio(above: float | None, below: float | None) -> float | None:
    """Their quotient, None where there is none."""
    return above / below if above is not None and below else None


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
