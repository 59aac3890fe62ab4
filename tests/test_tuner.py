"""KerasTuner searches: versions by trial and execution, and the winner published."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest
from support.processes import run_in_c, run_python
from support.searches import X, Y, build, exported, random_search, search
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from keras_export_callbacks import ExportDirectory, ExportError, ExportEveryN, ExportOnImprove
from keras_export_callbacks.tuner import ExportTrials, publish_best

pytestmark = [
    pytest.mark.slow,
    # Of Keras and KerasTuner, about what they use themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class FailsOnce(keras_tuner.HyperModel):
    """Fails in the second execution of its third trial, after an export."""

    def __init__(self) -> None:
        super().__init__()
        self.fits = itertools.count()

    def build(self, hp: Any) -> Any:
        return build(hp)

    def fit(self, hp: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        history = model.fit(*args, **kwargs)
        if next(self.fits) == 5:
            raise ValueError("no luck")
        return history


def test_a_search_with_executions_and_a_failing_trial() -> None:
    tuner = random_search(
        ExportTrials(FailsOnce()), max_trials=4, executions_per_trial=2, max_retries_per_trial=1
    )
    search(
        tuner,
        ExportOnImprove("trials", "val_accuracy", log_dir="logs"),
        ExportEveryN("every", log_dir=None, keep=1),
    )
    best, every = exported("trials"), exported("every")
    names = {(f"trial_{i}", f"execution_{k}") for i in range(4) for k in range(2)}
    assert set(best) == set(every) == names
    for (trial, execution), records in [*best.items(), *every.items()]:
        for record in records:
            assert (f"trial_{record.trial}", f"execution_{record.execution}") == (trial, execution)
            values = tuner.oracle.get_trial(record.trial).hyperparameters.values
            assert record.hyperparameters == values
            assert Path(record.project, f"trial_{record.trial}", "trial.json").exists()
    attempts = {(r.trial, r.attempt) for records in every.values() for r in records}
    assert ("2", 1) in attempts
    assert {attempt for trial, attempt in attempts if trial != "2"} == {0}
    # What the failed attempt had exported stays.
    assert {r.attempt for r in best["trial_2", "execution_0"]} == {0, 1}

    winner = publish_best(tuner, "trials", "serving/digits")
    assert winner.trial == tuner.oracle.get_best_trials()[0].trial_id
    values = [
        r.value for (trial, _), rs in best.items() if trial == f"trial_{winner.trial}" for r in rs
    ]
    assert winner.value == max(values)
    served = run_in_c(winner.path, "serve", {"inputs": X[500:]})["output_0"]
    # Over a tenth by far: it was trained.
    assert np.mean(np.argmax(served, axis=-1) == Y[500:]) > 0.3
    before = sorted(path.stat().st_mtime_ns for path in Path("serving").rglob("*"))
    assert publish_best(tuner, "trials", "serving/digits") == winner
    assert before == sorted(path.stat().st_mtime_ns for path in Path("serving").rglob("*"))
    assert_runs_and_hyperparameters(names, best)


def assert_runs_and_hyperparameters(names: Any, records: Any) -> None:
    """One TensorBoard run per trial and execution, with its hyperparameters."""
    for trial, execution in names:
        events = EventAccumulator(f"logs/exports/trials/{trial}/{execution}").Reload()
        steps = [event.step for event in events.Tensors("export/val_accuracy")]
        assert steps == [record.step for record in records[trial, execution]]
        start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        data = plugin_data_pb2.HParamsPluginData.FromString(start)
        assert data.session_start_info.group_name == f"{trial}/{execution}"
        shown = data.session_start_info.hparams
        wanted = records[trial, execution][0].hyperparameters
        assert {name: value.number_value for name, value in shown.items()} == wanted


def test_a_trial_that_diverges_does_not_end_the_search(capsys: pytest.CaptureFixture[str]) -> None:
    def build_one(hp: Any) -> Any:
        model = build(hp.__class__())
        weight = hp.Choice("weight", [3e38, 1.0])  # Of the first the loss is infinite.
        model.compile("sgd", "sparse_categorical_crossentropy", loss_weights=[weight])
        return model

    tuner = keras_tuner.GridSearch(ExportTrials(build_one), "val_loss", directory="search")
    search(tuner, ExportOnImprove("trials", "val_loss", log_dir=None))
    assert "The monitored metric 'val_loss' was never finite" in capsys.readouterr().err
    (records,) = exported().values()
    assert {record.hyperparameters["weight"] for record in records} == {1.0}
    assert publish_best(tuner, "trials", "serving").value == min(r.value for r in records)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: keras_tuner.Hyperband(m, "val_loss", max_epochs=2, factor=2, directory="search"),
        lambda m: keras_tuner.BayesianOptimization(m, "val_loss", max_trials=3, directory="search"),
        lambda m: keras_tuner.GridSearch(m, "val_loss", max_trials=2, directory="search"),
    ],
    ids=["Hyperband", "BayesianOptimization", "GridSearch"],
)
@pytest.mark.filterwarnings("ignore::UserWarning:keras")  # Of weights that it loads.
@pytest.mark.zoo
def test_other_searches(make: Any) -> None:
    tuner = make(ExportTrials(build))
    search(tuner, ExportOnImprove("trials", "val_loss", log_dir=None, keep=1))
    found = exported()
    assert {trial.status for trial in tuner.oracle.trials.values()} == {"COMPLETED"}
    assert {trial for trial, _ in found} == {f"trial_{name}" for name in tuner.oracle.trials}
    assert {execution for _, execution in found} == {"execution_0"}
    winner = publish_best(tuner, "trials", "serving")
    assert winner.trial == tuner.oracle.get_best_trials()[0].trial_id


class Folds(keras_tuner.Tuner):
    """Fits every trial on two folds."""

    copies = True

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        callbacks = kwargs.pop("callbacks")
        results = []
        for _ in range(2):
            model = self.hypermodel.build(trial.hyperparameters)
            used = self._deepcopy_callbacks(callbacks) if self.copies else callbacks
            used = [*used, keras_tuner_callback(self, trial)]
            history = self.hypermodel.fit(
                trial.hyperparameters, model, *args, callbacks=used, **kwargs
            )
            results.append(history)
        return results


def keras_tuner_callback(tuner: Any, trial: Any) -> Any:
    callback = keras.callbacks.Callback()
    callback.tuner, callback.trial = tuner, trial
    return callback


@pytest.mark.parametrize("copies", [True, False])
def test_a_tuner_of_ones_own(copies: bool) -> None:
    oracle = keras_tuner.oracles.RandomSearchOracle("val_accuracy", max_trials=2)
    tuner = Folds(oracle=oracle, hypermodel=ExportTrials(build), directory="search")
    tuner.copies = copies
    search(tuner, ExportEveryN("trials", log_dir=None, keep=1))
    assert set(exported()) == {(f"trial_{i}", f"execution_{k}") for i in (0, 1) for k in (0, 1)}


def test_several_objectives() -> None:
    objectives = [
        keras_tuner.Objective("val_accuracy", "max"),
        keras_tuner.Objective("val_loss", "min"),
    ]
    tuner = random_search(ExportTrials(build), objective=objectives)
    search(tuner, ExportEveryN("trials", log_dir=None))
    winner = publish_best(tuner, "trials", "serving")
    records = exported()[f"trial_{winner.trial}", "execution_0"]
    scores = [r.metrics["val_loss"] - r.metrics["val_accuracy"] for r in records]
    assert winner.metrics["val_loss"] - winner.metrics["val_accuracy"] == min(scores)


RESUME = """
from support.searches import build, random_search, search
from keras_export_callbacks import ExportOnImprove
from keras_export_callbacks.tuner import ExportTrials, publish_best
tuner = random_search(ExportTrials(build), max_trials=3)
assert len(tuner.oracle.trials) == 2
search(tuner, ExportOnImprove("trials", "val_accuracy", log_dir=None))
assert len(tuner.oracle.trials) == 3
print(publish_best(tuner, "trials", "serving").version)
"""


def test_a_search_is_resumed_in_another_process() -> None:
    search(
        random_search(ExportTrials(build)),
        ExportOnImprove("trials", "val_accuracy", log_dir=None),
    )
    before = exported()
    assert run_python(RESUME).split()[-1] == "1"
    after = exported()
    assert {key: after[key] for key in before} == before
    assert set(after) - set(before) == {("trial_2", "execution_0")}


def test_what_a_search_published_is_the_best_that_there_is() -> None:
    search(random_search(ExportTrials(build)), ExportEveryN("trials", log_dir=None))
    (winner,) = ExportDirectory("trials/trial_0/execution_0").records()[-1:]
    ExportDirectory("serving").publish(winner.path)
    callback = ExportOnImprove("serving", "val_accuracy", log_dir=None)
    model = build(keras_tuner.HyperParameters())
    model.optimizer.learning_rate = 0.0
    model.fit(X[:32], Y[:32], validation_data=(X[300:500], Y[300:500]), verbose=0,
              callbacks=[callback])  # fmt: skip
    assert callback.exports == []


class ExportsItself(keras_tuner.HyperModel):
    """Makes a callback for each trial, with a directory that it chooses."""

    def build(self, hp: Any) -> Any:
        return build(hp)

    def fit(self, hp: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        export = ExportEveryN(f"trials/{hp.get('units')}", log_dir=None)
        kwargs["callbacks"] = [*kwargs["callbacks"], export]
        return model.fit(*args, **kwargs)


def test_a_callback_made_in_a_trial_is_that_trials_own_affair() -> None:
    search(random_search(ExportsItself()))
    assert {len(ExportDirectory(path).versions()) for path in Path("trials").iterdir()} == {2}


def test_without_export_trials_it_is_an_error_and_no_trials_are_mixed() -> None:
    # Not one of the failures that KerasTuner only counts.
    tuner = random_search(build, max_trials=5, max_consecutive_failed_trials=3)
    with pytest.raises(ExportError, match=r"Wrap the hypermodel: .*ExportTrials"):
        search(tuner, ExportEveryN("trials", log_dir=None))
    assert len(tuner.oracle.trials) == 1
    assert not Path("trials").exists()


def test_what_is_missing_is_told() -> None:
    with pytest.raises(ExportError, match=r"hypermodel=3.*Expected a `keras_tuner.HyperModel`"):
        ExportTrials(3)  # type: ignore[arg-type]
    tuner = random_search(ExportTrials(build), max_trials=1)
    with pytest.raises(ExportError, match="no completed trial"):
        publish_best(tuner, "trials", "serving")
    search(tuner)
    with pytest.raises(ExportError, match=r"'0', has exported no version.*'val_accuracy'"):
        publish_best(tuner, "trials", "serving")
