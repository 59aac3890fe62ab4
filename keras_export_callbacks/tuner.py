"""Exports from every trial of a KerasTuner search, and publishes the best version.

This module needs an optional dependency: ``pip install "keras-export-callbacks[tuner]"``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import keras_tuner

from .archive.errors import ExportError, ExportTypeError, VersionNotFoundError
from .archive.store.directory import ExportDirectory
from .archive.store.record import ExportRecord, TrialInfo, standing
from .archive.store.remote import VersionPath
from .archive.store.store import absolute_path, open_store
from .callbacks.base import ExportCallback

__all__ = ["ExportTrials", "publish_best"]


class ExportTrials(keras_tuner.HyperModel):  # type: ignore[misc]  # KerasTuner has no types.
    """A hypermodel that lets each trial of a search export to a directory of its own.

    The versions of a trial are in ``<base_dir>/trial_<id>/execution_<k>/<version>/``.
    Their manifests tell the trial, the execution, the hyperparameters, and the project
    directory, where KerasTuner keeps the score of the trial. If a trial fails and is
    tried again, it exports to the same directories, with a higher `attempt`.

    Args:
        hypermodel: `keras_tuner.HyperModel` or function. It makes the models of the trials.
            A function takes hyperparameters and returns a compiled model.

    Raises:
        ExportTypeError: If `hypermodel` is neither of these.

    Examples:
        >>> import keras, keras_tuner, numpy as np
        >>> from keras_export_callbacks import ExportOnImprove
        >>> from keras_export_callbacks.tuner import ExportTrials, publish_best
        >>> def build_model(hp):
        ...     units = hp.Int("units", 1, 8)
        ...     model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])
        ...     model.compile("adam", "mse")
        ...     return model
        >>> tuner = keras_tuner.RandomSearch(
        ...     ExportTrials(build_model), objective="loss", max_trials=2, directory="search"
        ... )
        >>> x, y = np.ones((8, 3)), np.ones((8, 1))
        >>> export = ExportOnImprove("trials", monitor="loss", log_dir=None)
        >>> tuner.search(x, y, epochs=2, verbose=0, callbacks=[export])
        >>> publish_best(tuner, "trials", "serving").version
        1
    """

    def __init__(self, hypermodel: keras_tuner.HyperModel | Callable[[Any], keras.Model]) -> None:
        super().__init__()
        if not isinstance(hypermodel, keras_tuner.HyperModel) and not callable(hypermodel):
            raise ExportTypeError(
                f"Received hypermodel={hypermodel!r}. Expected a `keras_tuner.HyperModel`, or a "
                "function from hyperparameters to a compiled model."
            )
        self._hypermodel = hypermodel
        self._trial: Any = None
        self._executions = 0
        self._attempt = 0

    def build(self, hp: Any) -> keras.Model:
        """Build a model with the wrapped hypermodel."""
        if isinstance(self._hypermodel, keras_tuner.HyperModel):
            return self._hypermodel.build(hp)
        return self._hypermodel(hp)

    def declare_hyperparameters(self, hp: Any) -> None:
        """Declare the hyperparameters of the wrapped hypermodel."""
        if isinstance(self._hypermodel, keras_tuner.HyperModel):
            self._hypermodel.declare_hyperparameters(hp)

    def fit(self, hp: Any, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        """Fit the model, with its export callbacks pointed to the trial's directory.

        Raises:
            ExportError: If KerasTuner's `TunerCallback`, which knows the trial, is not
                among the callbacks. A tuner of your own may have left it out.
        """
        callbacks = kwargs.get("callbacks") or []
        exports = [item for item in callbacks if isinstance(item, ExportCallback)]
        if exports:
            self._point(exports, hp, _tuner_callback(callbacks))
        try:
            if isinstance(self._hypermodel, keras_tuner.HyperModel):
                results = self._hypermodel.fit(hp, model, *args, **kwargs)
            else:
                results = super().fit(hp, model, *args, **kwargs)
        except BaseException:
            self._trial = None  # A retry of the trial is another attempt.
            raise
        self._executions += 1
        return results

    def _point(self, exports: list[ExportCallback], hp: Any, callback: Any) -> None:
        tuner, trial = callback.tuner, callback.trial
        if trial is not self._trial or self._executions >= _executions_per_attempt(tuner):
            self._trial, self._executions = trial, 0
            self._attempt = max(_next_attempt(item.root_dir, trial.trial_id) for item in exports)
        info = TrialInfo(
            trial=trial.trial_id,
            execution=self._executions,
            attempt=self._attempt,
            hyperparameters=dict(hp.values),
            project=os.fspath(tuner.project_dir),
        )
        for export in exports:
            export.within(info)


def publish_best(
    tuner: keras_tuner.Tuner, base_dir: str | os.PathLike[str], serving_dir: str | os.PathLike[str]
) -> ExportRecord:
    """Publish the best version of the search's best trial as the next one in `serving_dir`.

    The tuner's objective, or several objectives together, say which version is best. If
    the newest version in `serving_dir` is a copy of the best one, nothing is published.

    Args:
        tuner: `keras_tuner.Tuner`. The tuner after its search. Another process may have
            reloaded it.
        base_dir: String or `PathLike`. The `base_dir` of the export callback in the
            search.
        serving_dir: String or `PathLike`. The base directory that a model server polls.

    Returns:
        The `ExportRecord` of the version in `serving_dir`.

    Raises:
        ExportError: If no trial is completed, if the best trial exported no version
            with the metrics of the objective, or if the best version does not verify.
    """
    trials = tuner.oracle.get_best_trials(1)
    if not trials:
        raise VersionNotFoundError("The search has no completed trial. Call `tuner.search` first.")
    best = _best_version(tuner.oracle.objective, absolute_path(base_dir), trials[0].trial_id)
    target = ExportDirectory(serving_dir)
    newest = target.latest()
    if newest is not None and _came_from(newest, best):
        return newest
    return target.publish(best.path)


def _best_version(objective: Any, base_dir: VersionPath, trial_id: str) -> ExportRecord:
    records = [
        record
        for execution in _executions(base_dir, trial_id)
        for record in standing(ExportDirectory(execution).records())
    ]
    measured = [record for record in records if objective.has_value(record.metrics)]
    if not measured:
        raise VersionNotFoundError(
            f"The best trial, '{trial_id}', has exported no version with the objective "
            f"{objective.name!r} to '{base_dir}', and {len(records)} versions without it. Expected "
            "the base_dir of the export callback in a search with `ExportTrials`."
        )
    best = measured[0]
    for record in measured[1:]:
        if objective.better_than(*map(objective.get_value, (record.metrics, best.metrics))):
            best = record
    return best


def _came_from(record: ExportRecord, source: ExportRecord) -> bool:
    """Return whether a version is a copy of another."""
    return (record.trial, record.execution, record.attempt, record.files) == (
        source.trial,
        source.execution,
        source.attempt,
        source.files,
    )


def _tuner_callback(callbacks: list[Any]) -> Any:
    """Return the callback by which KerasTuner tells a hypermodel its trial."""
    for callback in callbacks:
        if hasattr(callback, "trial") and hasattr(callback, "tuner"):
            return callback
    raise ExportError(
        "No callback tells the trial. Expected the `TunerCallback` that `Tuner.run_trial` adds. In "
        "a tuner of your own, call `super().run_trial`, or add a `TunerCallback`."
    )


def _executions_per_attempt(tuner: Any) -> float:
    """Return how often a tuner fits a trial per attempt.

    For a tuner of the user's own it is infinity, because it is unknown.
    """
    is_own = not type(tuner).run_trial.__module__.startswith("keras_tuner.")
    return math.inf if is_own else int(tuner.executions_per_trial)


def _next_attempt(base_dir: VersionPath, trial_id: str) -> int:
    attempts = [
        record.attempt
        for execution in _executions(base_dir, trial_id)
        for record in ExportDirectory(execution).records()
        if record.attempt is not None
    ]
    return max(attempts, default=-1) + 1


def _executions(base_dir: VersionPath, trial_id: str) -> Iterator[VersionPath]:
    trial = base_dir / f"trial_{trial_id}"
    names = sorted(open_store(trial).names())
    yield from (trial / name for name in names if name.startswith("execution_"))
