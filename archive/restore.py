"""An export → a live model that trains on as if it had never stopped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from .errors import (
    DamagedVersionError,
    ExportValueError,
    MismatchError,
    VersionNotFoundError,
)
from .state.layer_state import derive, put_back, read_layer, saves_more
from .state.matching import Match, in_places, match_optimizer, match_variables, trained_by
from .state.model_state import ModelState, apart_from, described, find_model_state, raw_variable
from .state.models import check_model, has_call, is_built
from .state.variable_index import (
    ADDRESSES,
    ELSEWHERE,
    OPTIMIZER_VARIABLES,
    STATE,
    TABLES,
    VARIABLES,
    LayerStates,
    VariableIndex,
    VariableInfo,
    read_index,
    read_layers,
)
from .store.directory import ExportDirectory
from .store.download import local_copy
from .store.remote import VersionPath
from .store.store import absolute_path, open_store
from .store.verify import version_problems

_NO_OPTIMIZER = (
    "\nThe version holds no state of an optimizer. Register it in your `endpoints`, "
    "`archive.add_variable_collection('optimizer_variables', model.optimizer.variables)`, or "
    "restore before you compile the model."
)

# How many names a warning lists.
_LISTED = 10


def restore(model: keras.Model, version_path: str | os.PathLike[str]) -> None:
    """Put a version's weights, states and optimizer variables back into a model.

    Training then goes on as if it had never stopped. This restores weights,
    batch normalization statistics, the seeds of random layers, the states of
    recurrent layers, `tf.Variable`s and mutable tables in layers, vocabularies,
    and the optimizer with its step count. Layers that compute something from
    their variables, such as `Normalization`, compute it again. The model's own
    functions are then traced again; make a `tf.function` of your own again
    yourself. Either all variables are assigned or, after an error, none.

    A warning names what the version holds and the model cannot take, what the
    version lacks, and layers that have another name in the model.

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
    with local_copy(path) as local:
        _verify(path, local)
        _restore(model, path, local)


def _restore(model: keras.Model, path: VersionPath, local: Path) -> None:
    """Restore the version at `path`, which `local` is, or is a copy of."""
    index, layers = read_index(local), read_layers(local)
    optimizer = getattr(model, "optimizer", None)
    state = find_model_state([model], with_optimizer=optimizer is not None)
    match = _match(model, optimizer, index, state)
    if match.problems:
        raise MismatchError(
            f"'{path}' does not fit model '{model.name}'; nothing was assigned:\n  "
            + "\n  ".join(match.problems)
            + ("" if optimizer is None or OPTIMIZER_VARIABLES in index else _NO_OPTIMIZER)
        )
    if optimizer is not None:  # It may have made its variables only now.
        state = find_model_state([model], with_optimizer=True)
    others = apart_from(state.variables, (variable for variable, _ in match.pairs))
    read = _reader(local)
    assigns: list[Callable[[], Any]] = [
        partial(variable.assign, read(info)) for variable, info in match.pairs
    ]
    more, lost = _other_state(index, read, others, state.tables, optimizer is not None)
    for assign in [*assigns, *more]:
        assign()
    renewed, kept_apart = _renew_layers(state.layers, layers)
    if renewed:
        for layer in state.layers.values():
            _forget_traces(layer)
    _warn(
        f"Model '{model.name}' has other names than '{path}' for what is in the same place, of "
        "the same shapes and dtypes. It was restored there; see that these are the same:",
        [f"'{theirs}' is '{ours}' in the model" for theirs, ours in match.renamed.items()],
    )
    _warn(
        f"Not everything of '{path}' could be restored into model '{model.name}', and the "
        "following is not what it was:",
        [*lost, *kept_apart],
    )


def _match(model: keras.Model, optimizer: Any, index: VariableIndex, state: ModelState) -> Match:
    addresses = state.addresses()
    ours = [described(variable) for variable in model.variables]
    stored = in_places(
        index.get(VARIABLES, ()),
        [info.path for info in index.get(ADDRESSES, ())],
        [addresses.get(id(raw_variable(variable)), "") for variable in model.variables],
    )
    match = match_variables(model.variables, ours, stored)
    if optimizer is None:
        return match
    theirs = index.get(OPTIMIZER_VARIABLES, ())
    is_late = not optimizer.built and len(theirs) > len(optimizer.variables)
    if is_late and not match.problems:
        trained = trained_by(theirs, stored, model.variables)
        optimizer.build(trained or model.trainable_variables)
    its = [described(variable) for variable in optimizer.variables]
    return match.joined(match_optimizer(optimizer.variables, (its, ours), (theirs, stored)))


def _reader(path: Path) -> Callable[..., Any]:
    """A function that reads a variable, which is `exact`ly of the shape that is said of it."""
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(str(path / "variables" / "variables"))
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise DamagedVersionError(f"'{path}' cannot be restored: {error}.") from error

    def read(info: VariableInfo, exact: bool = True) -> Any:
        try:
            value = reader.get_tensor(info.key)
        except (RuntimeError, ValueError, tf.errors.OpError) as error:
            raise DamagedVersionError(f"'{path}' cannot be restored: {error}.") from error
        is_of_dtype = tf.dtypes.as_dtype(value.dtype).name == info.dtype
        if not is_of_dtype or (exact and value.shape != info.shape):
            raise DamagedVersionError(
                f"'{path}' cannot be restored: it says that '{info.path}' is of {info.dtype} "
                f"{info.shape}, and holds {value.dtype} {value.shape}."
            )
        return value

    return read


def _other_state(
    index: VariableIndex,
    read: Callable[..., Any],
    variables: dict[str, Any],
    tables: dict[str, Any],
    with_optimizer: bool,
) -> tuple[list[Callable[[], Any]], list[str]]:
    """How to put back what `model.variables` lacks, and what cannot be put back."""
    assigns: list[Callable[[], Any]] = []
    lost = []
    left = {**variables, **tables}
    for info in index.get(STATE, ()):
        if not with_optimizer and info.path.startswith("optimizer/"):
            continue
        value, variable = read(info, exact=False), left.pop(info.path, None)
        if variable is not None and _takes(variable, info, value):
            assigns.append(partial(variable.assign, value))
        else:
            lost.append(f"{_text(info)} has no such place in the model")
    parts = index.get(TABLES, ())
    for keys, values in zip(parts[::2], parts[1::2], strict=True):
        table = left.pop(keys.path, None)
        held = read(keys, exact=False), read(values, exact=False)
        if table is not None and _holds(table, keys, values, held[1]):
            assigns.append(partial(_fill, table, *held))
        else:
            lost.append(f"the table {keys.path} has no such place in the model")
    lost += [f"{_text(info)} is not part of the model" for info in index.get(ELSEWHERE, ())]
    lost += [f"{address} is in the model, and not in the version" for address in left]
    return assigns, lost


def _takes(variable: Any, info: VariableInfo, value: Any) -> bool:
    is_of_shape = tf.TensorShape(variable.shape).is_compatible_with(value.shape)
    return is_of_shape and described(variable).dtype == info.dtype


def _holds(table: Any, keys: VariableInfo, values: VariableInfo, held: Any) -> bool:
    dtypes = table.key_dtype.name, table.value_dtype.name
    return dtypes == (keys.dtype, values.dtype) and table.export()[1].shape[1:] == held.shape[1:]


def _fill(table: Any, keys: Any, values: Any) -> None:
    """Replace what is in a table, as TensorFlow does; a dense one refuses its own empty key."""
    tf.raw_ops.LookupTableImportV2(table_handle=table.resource_handle, keys=keys, values=values)


def _renew_layers(layers: dict[str, keras.Layer], stored: LayerStates) -> tuple[bool, list[str]]:
    """Let layers hold and derive what they did; whether one does, and which cannot."""
    is_renewed = False
    lost = [f"what layer {address} held is not in the model" for address in {*stored} - {*layers}]
    for address, layer in layers.items():
        name = f"layer '{layer.name}' ({address})"
        state, held = stored.get(address), read_layer(layer)
        if state is not None:
            was_put = put_back(layer, state)
            is_renewed |= bool(was_put)
            if was_put is False:
                lost.append(f"{name} cannot take the {' and '.join(state)} of the version")
        elif held and "num_tokens" not in held:
            lost.append(f"{name} keeps its {' and '.join(held)}, which the version lacks")
        if saves_more(layer):
            lost.append(f"{name} saves more than its variables, which a version does not hold")
            continue
        try:
            is_renewed |= derive(layer)
        except Exception as error:  # It is a method of a user's; the variables are assigned.
            lost.append(f"{name} cannot compute what it derives from its variables: {error!r}")
    return is_renewed, lost


def _forget_traces(model: Any) -> None:
    """Let a model trace again what it has traced: constants in there are not what they were."""
    if isinstance(model, keras.Model):
        for kind in ("train", "test", "predict"):
            if getattr(model, f"{kind}_function", None) is not None:
                getattr(model, f"make_{kind}_function")(force=True)


def _warn(message: str, items: Sequence[str]) -> None:
    if items:
        more = [f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
        listed = "\n  ".join([*items[:_LISTED], *more])
        warnings.warn(f"{message}\n  {listed}", stacklevel=4)


def _check(model: keras.Model, path: VersionPath) -> None:
    check_model(model)
    if not is_built(model) and not has_call(model):
        raise ExportValueError(
            f"Model '{model.name}' has no `call`, and a part of it has not been built. Call each "
            "part on a batch, or train the model for a step, first."
        )
    if not is_built(model):
        raise ExportValueError(
            f"Model '{model.name}' has not been built, so it has no variables to restore. "
            "Call it on a batch, or call `model.build(input_shape)`, first."
        )
    if not open_store(path).exists():
        others = ", ".join(map(str, ExportDirectory(path.parent).versions())) or "no versions"
        raise VersionNotFoundError(
            f"There is no version at '{path}'. Its directory holds {others}."
        )
    if held := ExportDirectory(path).versions():
        raise VersionNotFoundError(
            f"'{path}' is a base directory, and no version. Pass one of its versions, such as "
            f"'{path / str(held[-1])}'."
        )


def _verify(path: VersionPath, local: Path) -> None:
    if problems := version_problems(local):
        raise DamagedVersionError(
            f"'{path}' cannot be restored: {'; '.join(problems)}. Expected the directory of a "
            "version, or a copy of one, as it was published."
        )


def _text(info: VariableInfo) -> str:
    return f"{info.path} {info.dtype}{list(info.shape)}"
