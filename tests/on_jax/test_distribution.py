"""Variables on several devices, and in several processes, on JAX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from support.processes import free_port

from keras_export_callbacks import ExportDirectory


def started(*arguments: str, devices: int) -> subprocess.Popen[str]:
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "support.jax_distributed", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


@pytest.mark.parametrize("kind", ["data", "model"])
def test_variables_on_several_devices_are_exported_and_restored(kind: str) -> None:
    result = result_of(started(kind, devices=4))
    assert ("model" in result["sharding"]) == (kind == "model")
    assert result["improved"][0] == [1, 4]
    assert result["steps"] == [[1, 3], [2, 6], [3, 9], [4, 12]]
    assert result["served"]
    assert result["restored"]
    assert result["kept"]
    for name in ("improved", "steps"):
        directory = ExportDirectory(name)
        assert directory.versions() == [version for version, _ in result[name]]
        assert all(directory.verify(version) == [] for version in directory.versions())


def test_the_first_of_two_processes_publishes() -> None:
    port = str(free_port())
    processes = [started("data", str(rank), port, devices=1) for rank in (0, 1)]
    first, second = map(result_of, processes)
    assert first["improved"][0] == [1, 4]
    assert first["steps"] == [[1, 3], [2, 6], [3, 9], [4, 12]]
    assert first["served"]
    assert first["restored"]
    assert second["improved"] == second["steps"] == []
    assert ExportDirectory("improved").versions() == [version for version, _ in first["improved"]]
    assert ExportDirectory("steps").versions() == [1, 2, 3, 4]
    assert ExportDirectory("steps").verify(4) == []


def test_variables_spread_over_processes_are_refused() -> None:
    port = str(free_port())
    processes = [started("model", str(rank), port, devices=1) for rank in (0, 1)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode != 0
        assert "is spread over several processes" in errors
        assert "DataParallel" in errors
    assert not os.path.exists("improved")
