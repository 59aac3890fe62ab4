"""KerasTuner, TensorBoard and the command line with versions that were written on JAX."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from support.processes import run_in_c
from support.searches import X, Y, exported, random_search, search
from support.searches import build as build_classifier
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from keras_export_callbacks import ExportOnImprove
from keras_export_callbacks.cli import main
from keras_export_callbacks.tuner import ExportTrials, publish_best

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Of KerasTuner and Keras.


def test_a_search_publishes_the_best_version_of_the_best_trial() -> None:
    tuner = random_search(ExportTrials(build_classifier), max_trials=2)
    search(tuner, ExportOnImprove("trials", "val_accuracy", log_dir="logs"))
    records = exported()
    assert records.keys() == {(f"trial_{i}", "execution_0") for i in range(2)}
    winner = publish_best(tuner, "trials", "serving/digits")
    assert winner.value == max(r.value for found in records.values() for r in found)
    assert winner.trial == tuner.oracle.get_best_trials()[0].trial_id
    served = run_in_c(winner.path, "serve", {"inputs": X[500:]})["output_0"]
    # Over a tenth by far: it was trained.
    assert np.mean(np.argmax(served, axis=-1) == Y[500:]) > 0.3

    for (trial, execution), found in records.items():
        events = EventAccumulator(f"logs/exports/trials/{trial}/{execution}").Reload()
        points = events.Tensors("export/val_accuracy")
        assert [event.step for event in points] == [record.step for record in found]
        values = [float(tf.make_ndarray(event.tensor_proto)) for event in points]
        assert values == pytest.approx([record.value for record in found])

    runner = CliRunner()
    listed = runner.invoke(main, ["list", "serving/digits", "--json"])
    assert [item["version"] for item in json.loads(listed.stdout)] == [winner.version]
    verified = runner.invoke(main, ["verify", "serving/digits"])
    assert (verified.exit_code, listed.exit_code) == (0, 0)
