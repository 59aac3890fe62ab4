"""Measure this library, its alternatives, and the best that the machine can do.

Usage: python benchmarks/run.py [--only 'mobilenet/*'] [--backend jax] [--quick] [--json FILE]

Each model and method runs in processes of its own, one after the other. Do not run
anything else on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from machine import describe
from plan import QUICK, Job, Result, Sample, Size, jobs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from table import show
from targets import Target, targets

_HERE = Path(__file__).parent
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def main() -> int:
    options = _options()
    # Exit normally when told to stop, so that no processes and scratch files are left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    size = QUICK if options.quick else Size()
    console = Console(width=None if sys.stdout.isatty() else 150)
    os.environ["KERAS_BACKEND"] = options.backend
    machine = describe(options.directory) | {"backend": options.backend}
    start = time.perf_counter()
    results = _measure(jobs(options.only), size, options.directory)
    machine["minutes"] = f"{(time.perf_counter() - start) / 60:.0f}"
    reached = targets({result.job.name: result for result in results})
    show(console, machine, results, reached)
    if options.json:
        options.json.write_text(_json(machine, size, results, reached))
    return int(any(result.failed for result in results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="MODEL/METHOD", help="such as 'mobilenet/*'"
    )
    parser.add_argument(
        "--backend", default="tensorflow", choices=("tensorflow", "jax"), help="of Keras"
    )
    parser.add_argument("--quick", action="store_true", help="measure less of everything, roughly")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there too")
    parser.add_argument(
        "--directory", type=Path, default=Path("/var/tmp"), help="directory on the disk to measure"
    )
    return parser.parse_args()


def _json(machine: dict[str, str], size: Size, results: list[Result], reached: list[Target]) -> str:
    """Return everything as JSON, with one result per line."""
    content = {
        "machine": machine,
        "size": asdict(size),
        "targets": [{**asdict(target), "met": target.met} for target in reached],
    }
    head = json.dumps(content, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(asdict(result)) for result in results)
    return f'{head},\n "results": [\n{lines}\n ]\n}}\n'


def _rounded(number: str) -> float:
    """Return a number with five digits. A clock is not better, and a file of them is small."""
    return float(f"{float(number):.5g}")


def _measure(todo: list[Job], size: Size, directory: Path) -> list[Result]:
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        whole = progress.add_task("all", total=len(todo))
        for job in todo:
            start = time.perf_counter()
            task = progress.add_task(job.name, total=None)
            results.append(_result(job, size, directory, partial(progress.advance, task)))
            progress.remove_task(task)
            progress.console.print(f"{job.name}: {time.perf_counter() - start:.0f} s")
            progress.advance(whole)
    return results


def _result(job: Job, size: Size, directory: Path, advance: Callable[[], None]) -> Result:
    missing = job.missing()
    if missing:
        return Result(job, [], f"skipped, {missing} is not installed: pip install '.[benchmark]'")
    result = Result(job, [])
    for samples in job.samples(size):
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=directory) as scratch:
            try:
                result.runs.append(_process(job, samples, size.steps, scratch, advance))
            except _JobError as error:
                result.problem, result.failed = f"failed: {error}", True
    return result


class _JobError(Exception):
    """A measuring process ended with an error."""


def _process(
    job: Job, samples: int, steps: int, scratch: str, advance: Callable[[], None]
) -> list[Sample]:
    """Return the samples of a new process, which has memory and caches of its own."""
    arguments = [job.subject, job.method, f"{scratch}/work", str(samples), str(steps)]
    with (
        open(f"{scratch}/errors", "w+") as errors,
        subprocess.Popen(
            [sys.executable, str(_HERE / "measure.py"), *arguments],
            env=os.environ | _ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        found = []
        try:
            for line in process.stdout:
                found.append(json.loads(line, parse_float=_rounded))
                advance()
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            errors.seek(0)
            lines = errors.read().strip().splitlines() or ["no message"]
            print(*lines, sep="\n", file=sys.stderr)
            raise _JobError(f"exit code {process.returncode}, {lines[-1]}")
        return found


if __name__ == "__main__":
    sys.exit(main())
