"""KerasTuner's own distributed tuning: a chief and two workers, one export directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import free_port, run_in_c
from support.searches import X, build, exported, random_search

from keras_export_callbacks import ExportDirectory
from keras_export_callbacks.tuner import ExportTrials, publish_best

SEARCH = """
import sys
sys.path[:0] = sys.argv[1:]
from support.searches import build, random_search, search
from keras_export_callbacks import ExportEveryN
from keras_export_callbacks.tuner import ExportTrials
tuner = random_search(ExportTrials(build), max_trials=6, executions_per_trial=2)
search(tuner, ExportEveryN("trials", log_dir=None))
"""


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_chief_and_two_workers() -> None:
    place = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(free_port())}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", SEARCH, *sys.path],
            env=os.environ | place | {"KERASTUNER_TUNER_ID": name},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("chief", "worker0", "worker1")
    }
    for name, process in processes.items():
        _, errors = process.communicate()
        assert process.returncode == 0, f"{name}: {errors[-2000:]}"

    tuner = random_search(ExportTrials(build), max_trials=6)
    tuner.oracle.reload()
    found = exported()
    assert set(found) == {(f"trial_{i}", f"execution_{k}") for i in range(6) for k in range(2)}
    for (trial, execution), records in found.items():
        assert [record.epoch for record in records] == [0, 1]
        for record in records:
            assert (f"trial_{record.trial}", f"execution_{record.execution}") == (trial, execution)
            values = tuner.oracle.get_trial(record.trial).hyperparameters.values
            assert record.hyperparameters == values
    winner = publish_best(tuner, "trials", "serving")
    assert winner.trial == tuner.oracle.get_best_trials()[0].trial_id
    assert publish_best(tuner, "trials", "serving") == winner
    assert ExportDirectory("serving").versions() == [1]
    assert run_in_c(Path(winner.path), "serve", {"inputs": X})["output_0"].shape == (len(X), 10)
