"""Measure exports while `model.fit` trains on an accelerator, with Keras on JAX.

Usage: KERAS_BACKEND=jax python benchmarks/accelerator.py [MODEL ...]

A training with exports follows one without, with the same number of steps. On a machine
without an accelerator it measures the processor.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import keras
from models import Trainee, data

from keras_export_callbacks import ExportEveryN

BATCH = 32
EXPORTS = 6

# A version is written in less time than this many steps take, for each model.
STEPS = {"mobilenet": 100, "wide": 1_000}


class _Clock(keras.callbacks.Callback):
    """Takes the time after each step. It must come before the callback that exports."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        float(logs["loss"])  # This waits for the device.
        self.times.append(time.perf_counter())


def main(names: list[str]) -> None:
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, Keras {keras.__version__}")
    for name in names:
        for what, value in _measured(name, STEPS[name]).items():
            print(f"  {name}: {what}: {value}", flush=True)


def _measured(name: str, every: int) -> dict[str, str]:
    model = Trainee(name).model
    x, y = data(model, rows=BATCH)
    published: list[float] = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        export = ExportEveryN(
            Path(directory, "versions"),
            every,
            unit="batch",
            keep=2,
            log_dir=None,
            on_export=lambda record: published.append(time.perf_counter()),
        )
        _fit(model, x, y, 2 * every, [])  # Compiles the step.
        state = _device_memory("bytes_in_use")
        alone = _fit(model, x, y, (EXPORTS + 1) * every, [])
        peak = _device_memory("peak_bytes_in_use")
        steps_before = int(model.optimizer.iterations)
        start, beside = time.perf_counter(), _fit(model, x, y, (EXPORTS + 1) * every, [export])
        first, *later = export.exports
        stalls = [record.stall_seconds for record in later]
        # An interval between two steps begins with the export, if one is due.
        writing = [
            step
            for record, end in zip(later, published[1:], strict=True)
            for step, at in _steps(beside, record.step - steps_before)
            if at < end
        ]
        writing = writing or [float("nan")]
        step = median(step for step, _ in _steps(alone, 0))
        begin = later[0].step - steps_before
        spent, steps = beside[-1] - beside[begin - 1], len(beside) - begin
        with_sample = _sample_difference(model, x, Path(directory, "sample"))
        return {
            "a version": f"{first.bytes / 1e6:.0f} MB",
            "first stall": f"{first.stall_seconds:.2f} s, of {beside[-1] - start:.1f} s in all",
            "later stall": f"{1e3 * median(stalls):.2f} ms",
            "written in": f"{median(record.write_seconds for record in later):.2f} s",
            "step without": f"{1e3 * step:.2f} ms",
            "step while a version is written": f"{1e3 * median(writing):.2f} ms",
            "the longest of these": f"{1e3 * max(writing):.0f} ms",
            "lost in all, an export": f"{1e3 * (spent - steps * step) / len(later):.0f} ms",
            "device memory before": f"{state / 1e6:.0f} MB, in a step {peak / 1e6:.0f} MB",
            "device memory at most": f"{_device_memory('peak_bytes_in_use') / 1e6:.0f} MB",
            "device memory after": f"{_device_memory('bytes_in_use') / 1e6:.0f} MB",
            "difference on a sample": with_sample,
        }


def _fit(model: Any, x: Any, y: Any, steps: int, callbacks: list[Any]) -> list[float]:
    """Train on one batch, again and again, and return the time after each step."""
    clock = _Clock()
    batches = _Repeated(x, y, steps)
    model.fit(batches, epochs=1, verbose=0, callbacks=[clock, *callbacks])
    return clock.times


class _Repeated(keras.utils.PyDataset):
    """The same batch for each step."""

    def __init__(self, x: Any, y: Any, steps: int) -> None:
        super().__init__()
        self._batch, self._steps = (x, y), steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> Any:
        return self._batch


def _steps(times: list[float], exported: int) -> list[tuple[float, float]]:
    """Return the duration and the end of each step, from the second one after an export on.

    The number of steps before the export is `exported`.
    """
    return [(times[i] - times[i - 1], times[i]) for i in range(exported + 1, len(times))]


def _sample_difference(model: Any, x: Any, directory: Path) -> str:
    callback = ExportEveryN(directory, sample_inputs=x, log_dir=None)
    model.fit(x, data(model, rows=BATCH)[1], verbose=0, callbacks=[callback])
    parity = callback.exports[0].parity
    assert parity is not None
    found, allowed = parity.differences["serve/output_0"], parity.allowed["serve/output_0"]
    return f"{found:.2g}, where rounding explains {allowed:.2g}"


def _device_memory(what: str) -> int:
    return int((jax.devices()[0].memory_stats() or {}).get(what, 0))


if __name__ == "__main__":
    main(sys.argv[1:] or list(STEPS))
