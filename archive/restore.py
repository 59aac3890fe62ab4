"""An export → a live model that trains on as if it had never stopped."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from .directory import ExportDirectory, version_problems
from .errors import (
    DamagedVersionError,
    ExportValueError,
    MismatchError,
    VersionNotFoundError,
)
from .model_call import is_built
from .models import check_model
from .paths import absolute_path
from .remote import VersionPath
from .variable_index import VariableInfo, read_index

# What Keras adds to the name of a layer it has made before, in a variable's path.
_COUNT = re.compile(r"_\d+(?=[/_]|$)")


def restore(model: keras.Model, version_path: str | os.PathLike[str]) -> None:
    """Put a version's weights, states and optimizer variables back into a model.

    Training then goes on as if it had never stopped: weights, batch
    normalization statistics, the seeds of random layers, and the optimizer with
    its step count are those of the export. Either all of them are assigned or,
    after an error, none.

    Args:
        model: built, and compiled with the same optimizer if training is to go
            on. For an uncompiled model only its own variables are restored.
        version_path: the directory of a version, such as ``record.path``, or a
            copy of one.

    Raises:
        ExportError: there is no such version, it is damaged, or its variables do
            not match the model's; the message lists each difference.

    Example:

    >>> import keras
    >>> from keras_export_callbacks import Exporter, restore
    >>> def build():
    ...     model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    ...     model.compile("adam", "mse")
    ...     return model
    >>> with Exporter("resumable", build(), log_dir=None) as exporter:
    ...     version = exporter.export().result()
    >>> restore(build(), version.path)
    """
    path = absolute_path(version_path)
    _check(model, path)
    index = read_index(path)
    optimizer = getattr(model, "optimizer", None)
    problems, matched = _match("model", model.variables, index.get("variables", ()))
    if optimizer is not None:
        stored = index.get("optimizer_variables", ())
        if not optimizer.built and len(stored) > len(optimizer.variables):
            optimizer.build(model.trainable_variables)
        found, pairs = _match("optimizer", optimizer.variables, stored, depth=2)
        problems, matched = problems + found, matched + pairs
    if problems:
        raise MismatchError(
            f"'{path}' does not fit model '{model.name}'; nothing was assigned:\n  "
            + "\n  ".join(problems)
        )
    values = _stored_values(path, [info for _, info in matched])
    for (variable, _), value in zip(matched, values, strict=True):
        variable.assign(value)


def _stored_values(path: VersionPath, infos: Sequence[VariableInfo]) -> list[Any]:
    """The values of variables in a version, which are of the shapes and dtypes that it says."""
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(str(path / "variables" / "variables"))
        values = [reader.get_tensor(info.key) for info in infos]
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise DamagedVersionError(f"'{path}' cannot be restored: {error}.") from error
    for info, value in zip(infos, values, strict=True):
        if value.shape != info.shape or tf.dtypes.as_dtype(value.dtype).name != info.dtype:
            raise DamagedVersionError(
                f"'{path}' cannot be restored: it says that '{info.path}' is of {info.dtype} "
                f"{info.shape}, and holds {value.dtype} {value.shape}."
            )
    return values


def _check(model: keras.Model, path: VersionPath) -> None:
    check_model(model)
    if not is_built(model):
        raise ExportValueError(
            f"Model '{model.name}' has not been built, so it has no variables to restore. "
            "Call it on a batch, or call `model.build(input_shape)`, first."
        )
    if not path.is_dir():
        held = ", ".join(map(str, ExportDirectory(path.parent).versions())) or "no versions"
        raise VersionNotFoundError(f"There is no version at '{path}'. Its directory holds {held}.")
    if problems := version_problems(path):
        raise DamagedVersionError(
            f"'{path}' cannot be restored: {'; '.join(problems)}. Expected the directory of a "
            "version, or a copy of one, as it was published."
        )


def _match(
    owner: str, variables: Sequence[Any], stored: Sequence[VariableInfo], depth: int = 0
) -> tuple[list[str], list[tuple[Any, VariableInfo]]]:
    """Pair variables with what is stored, in order; tell every difference.

    Of a path only the last `depth` parts count, if that is not 0: what an
    optimizer inside another makes late has that one's name before its own.
    """
    problems = []
    for place in range(max(len(variables), len(stored))):
        ours = _described(variables[place]) if place < len(variables) else None
        theirs = stored[place] if place < len(stored) else None
        if ours is None or theirs is None or _comparable(ours, depth) != _comparable(theirs, depth):
            problems.append(
                f"{owner} variable {place}: the version has {_text(theirs)}, "
                f"the model has {_text(ours)}"
            )
    return problems, list(zip(variables, stored, strict=False))


def _described(variable: Any) -> VariableInfo:
    shape = tuple(tf.TensorShape(variable.shape).as_list())
    return VariableInfo(variable.path, shape, tf.dtypes.as_dtype(variable.dtype).name, "")


def _comparable(info: VariableInfo, depth: int) -> tuple[Any, ...]:
    """What must be equal: all but the counts in the names of layers made again."""
    path = _COUNT.sub("", "/".join(info.path.split("/")[-depth:]))
    return path, info.shape, info.dtype


def _text(info: VariableInfo | None) -> str:
    return "nothing" if info is None else f"{info.path} {info.dtype}{list(info.shape)}"
