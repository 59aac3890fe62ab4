"""Restores a model from a version, so that training continues as if it had never stopped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .errors import (
    DamagedVersionError,
    ExportTypeError,
    ExportValueError,
    MismatchError,
    VersionNotFoundError,
)
from .state.layer_state import derive, put_back, read_layer, saves_more
from .state.matching import (
    Match,
    in_places,
    match_by_path,
    match_optimizer,
    match_variables,
    trained_by,
)
from .state.model_state import ModelState, apart_from, described, find_model_state, raw_variable
from .state.models import check_model, check_optimizer, has_call, is_built
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
from .store.below import no_versions
from .store.directory import ExportDirectory
from .store.download import local_copy
from .store.record import ExportRecord, read_record
from .store.remote import VersionPath
from .store.store import absolute_path, open_store
from .store.verify import version_problems
from .store.versions import MANIFEST, SAVED_MODEL

_NO_OPTIMIZER = (
    "the optimizer, which stays as it is. The version holds no optimizer state. To export it, "
    "compile the model, or pass the optimizer of your loop as `Exporter(optimizer=)`. In your own "
    "`endpoints` function, call `archive.add_variable_collection('optimizer_variables', "
    "model.optimizer.variables)`"
)

_NOT_COMPILED = (
    "the state of the optimizer, because the model is not compiled. Compile it before `restore`, "
    "or pass the optimizer of your loop as `optimizer=`"
)

_NOT_TRACKED = (
    "\nThe model was exported without `archive.track(model)`, so its variables were looked up by "
    "their paths. Give layers and variables the names that they had."
)

# How many names a warning lists.
_LISTED = 10


def restore(
    model: keras.Model,
    version_path: str | os.PathLike[str] | ExportRecord,
    optimizer: keras.optimizers.Optimizer | None = None,
) -> ExportRecord:
    """Restore the weights, other state and optimizer of a model from a version.

    Training then continues as if it had never stopped. These are restored:

    - weights and batch normalization statistics,
    - the seeds of random layers and the states of recurrent layers,
    - vocabularies, and `tf.Variable`s and mutable tables in layers,
    - the optimizer with its step count.

    Layers that compute something from their variables, such as `Normalization`,
    compute it again. Where needed, the functions that `fit`, `evaluate` and `predict`
    have traced are traced again. If you use a `tf.function` of your own, make it again
    yourself. Either all variables are assigned or, after an error, none.

    Warnings list the state in the version that the model cannot take, the state in the
    model that the version lacks, and the layers that have another name in the model.

    If your own `endpoints` did not export the optimizer, it stays as it is, with a warning.
    If they did not track the model, its weights are looked up by their paths.

    Args:
        model: Keras model. The model to restore. It must be built. To continue training,
            compile it with the same optimizer first. If it is not compiled and you pass no
            `optimizer`, the optimizer is not restored, with a warning.
        version_path: String, `PathLike` or `ExportRecord`. The directory of a version, or a
            copy of one. For a base directory, its newest version is restored.
        optimizer: Keras optimizer. The optimizer of your training loop, if it is not the one
            that the model is compiled with.

    Returns:
        The `ExportRecord` of the version. Pass ``initial_epoch=record.epoch + 1`` to `fit`.

    Raises:
        ExportError: If there is no version at the path, if it is damaged, or if its
            variables do not match the model's. The message lists each difference.

    Examples:
        >>> import keras
        >>> import numpy as np
        >>> from keras_export_callbacks import ExportEveryN, restore
        >>> def build():
        ...     model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        ...     model.compile("adam", "mse")
        ...     return model
        >>> x, y = np.ones((8, 3)), np.ones((8, 2))
        >>> options = {"verbose": 0, "callbacks": [ExportEveryN("resumable", log_dir=None)]}
        >>> _ = build().fit(x, y, epochs=2, **options)
        >>> model = build()
        >>> record = restore(model, "resumable")
        >>> history = model.fit(x, y, initial_epoch=record.epoch + 1, epochs=4, **options)
        >>> history.epoch
        [2, 3]
    """
    _check_model(model)
    path = _version_path(version_path)
    if optimizer is not None:
        check_optimizer(optimizer)
    with local_copy(path) as local:
        if local == path:  # A copy was verified while it was made.
            _verify(local)
        _restore(model, path, local, optimizer)
        return replace(read_record(open_store(local)), path=path)


def _restore(model: keras.Model, path: VersionPath, local: Path, own_optimizer: Any) -> None:
    """Restore the version at `path` from `local`, which is the same directory or a copy."""
    index, layers = read_index(local), read_layers(local)
    compiled = getattr(model, "optimizer", None)
    optimizer = compiled if own_optimizer is None else own_optimizer
    is_lost = optimizer is None and bool(index.get(OPTIMIZER_VARIABLES))
    stays = optimizer is not None and not index.get(OPTIMIZER_VARIABLES)
    if stays:
        optimizer = None
    state = find_model_state([model], optimizer is not None, own_optimizer)
    match = _match(model, optimizer, index, state)
    if match.problems:
        raise MismatchError(
            f"'{path}' does not match model '{model.name}', so nothing was assigned:\n  "
            + "\n  ".join(match.problems)
            + ("" if index.get(VARIABLES) else _NOT_TRACKED)
        )
    if optimizer is not None:  # Matching may have built it.
        state = find_model_state([model], True, own_optimizer)
    restored = [variable for variable, _ in match.pairs]
    others = apart_from(state.variables, restored)
    # The search for state does not find everything that `model.variables` lists, such as seeds.
    unfound = {variable.path: variable for variable in model.variables}
    unfound = apart_from(unfound, [*restored, *others.values()])
    read = _reader(local)
    assigns: list[Callable[[], Any]] = [
        partial(variable.assign, _converted(read(info), variable)) for variable, info in match.pairs
    ]
    paired = {info.key for _, info in match.pairs}
    more, lost = _other_state(index, paired, read, others, state.tables, optimizer is not None)
    for assign in [*assigns, *more]:
        assign()
    renewed, kept_apart = _renew_layers(state.layers, layers)
    if renewed:
        for layer in state.layers.values():
            _forget_traces(layer)
    _warn(
        f"Some names in model '{model.name}' differ from those in '{path}'. The variables were "
        "restored by their position, shape and dtype. Check that these are the same layers:",
        [f"'{theirs}' is '{ours}' in the model" for theirs, ours in match.renamed.items()],
    )
    _warn(
        f"Not everything in '{path}' could be restored into model '{model.name}'. The "
        "following may differ from the version:",
        [
            *[_NO_OPTIMIZER] * stays,
            *[_NOT_COMPILED] * is_lost,
            *map(_missing, unfound),
            *lost,
            *kept_apart,
        ],
    )


def _match(model: keras.Model, optimizer: Any, index: VariableIndex, state: ModelState) -> Match:
    addresses = state.addresses()
    variables = model.variables
    ours = [described(variable) for variable in variables]
    if index.get(VARIABLES):
        stored = in_places(
            index[VARIABLES],
            [info.path for info in index.get(ADDRESSES, ())],
            [addresses.get(id(raw_variable(variable)), "") for variable in variables],
        )
        match = match_variables(variables, ours, stored)
    else:
        match = match_by_path(variables, ours, index.get(ELSEWHERE, ()), model.weights)
        variables, stored = [one for one, _ in match.pairs], [info for _, info in match.pairs]
        ours = [described(variable) for variable in variables]
    if optimizer is None:
        return match
    theirs = index.get(OPTIMIZER_VARIABLES, ())
    is_late = not optimizer.built and len(theirs) > len(optimizer.variables)
    if is_late and not match.problems:
        trained = trained_by(theirs, stored, variables)
        optimizer.build(trained or model.trainable_variables)
    its = [described(variable) for variable in optimizer.variables]
    return match.joined(match_optimizer(optimizer.variables, (its, ours), (theirs, stored)))


def _reader(path: Path) -> Callable[..., Any]:
    """Return a function that reads a variable, and checks its dtype against the index.

    With `exact`, the function checks the shape as well.
    """
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
                f"'{path}' cannot be restored: its index says that '{info.path}' is {info.dtype} "
                f"{info.shape}, but its checkpoint holds {value.dtype} {value.shape}."
            )
        return value

    return read


def _converted(value: Any, variable: Any) -> Any:
    """Return a value of a version, with integers of the width that a variable has here.

    The width may differ between backends.

    Raises:
        MismatchError: If an integer does not fit into the variable. Seeds are not checked.
    """
    dtype = tf.dtypes.as_dtype(variable.dtype).as_numpy_dtype
    if value.dtype == dtype or not np.issubdtype(value.dtype, np.integer):
        return value
    converted = value.astype(dtype)
    is_seed = getattr(variable, "name", "").startswith("seed_generator_state")
    if not is_seed and not np.array_equal(converted, value):
        raise MismatchError(
            f"The version holds {value!r:.80} for '{variable.path}', which {variable.dtype} "
            "cannot hold."
        )
    return converted


def _other_state(
    index: VariableIndex,
    paired: Collection[str],
    read: Callable[..., Any],
    variables: dict[str, Any],
    tables: dict[str, Any],
    with_optimizer: bool,
) -> tuple[list[Callable[[], Any]], list[str]]:
    """Find the state of a version that `model.variables` does not list.

    Returns:
        Functions that put this state back, and a description of each item that cannot
        be put back.
    """
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
            lost.append(f"{_text(info)} has no match in the model")
    parts = index.get(TABLES, ())
    for keys, values in zip(parts[::2], parts[1::2], strict=True):
        table = left.pop(keys.path, None)
        held = read(keys, exact=False), read(values, exact=False)
        if table is not None and _holds(table, keys, values, held[1]):
            assigns.append(partial(_fill, table, *held))
        else:
            lost.append(f"the table {keys.path} has no match in the model")
    elsewhere = [info for info in index.get(ELSEWHERE, ()) if info.key not in paired]
    lost += [f"{_text(info)} is not part of the model" for info in elsewhere]
    return assigns, [*lost, *map(_missing, left)]


def _missing(name: str) -> str:
    return f"{name} is in the model, but not in the version"


def _takes(variable: Any, info: VariableInfo, value: Any) -> bool:
    is_of_shape = tf.TensorShape(variable.shape).is_compatible_with(value.shape)
    return is_of_shape and described(variable).dtype == info.dtype


def _holds(table: Any, keys: VariableInfo, values: VariableInfo, held: Any) -> bool:
    dtypes = table.key_dtype.name, table.value_dtype.name
    return dtypes == (keys.dtype, values.dtype) and table.export()[1].shape[1:] == held.shape[1:]


def _fill(table: Any, keys: Any, values: Any) -> None:
    """Replace the contents of a table, as TensorFlow does when it loads a checkpoint.

    The table's `insert` would not do: a dense table exports its empty key, and then
    refuses to insert it.
    """
    tf.raw_ops.LookupTableImportV2(table_handle=table.resource_handle, keys=keys, values=values)


def _renew_layers(layers: dict[str, keras.Layer], stored: LayerStates) -> tuple[bool, list[str]]:
    """Put back the state of layers that is not in variables, and let layers derive theirs.

    Returns:
        Whether a layer has changed, and a description of each item that cannot be put
        back.
    """
    is_renewed = False
    lost = [
        f"the state of layer {address} is not in the model" for address in {*stored} - {*layers}
    ]
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
            lost.append(f"{name} saves more than its variables, and a version lacks the rest")
            continue
        try:
            is_renewed |= derive(layer)
        except Exception as error:  # The user's method failed; the variables are assigned.
            lost.append(f"{name} cannot compute what it derives from its variables: {error!r}")
    return is_renewed, lost


def _forget_traces(model: Any) -> None:
    """Make the functions of a model again, because their traces hold old constants."""
    if isinstance(model, keras.Model):
        for kind in ("train", "test", "predict"):
            if getattr(model, f"{kind}_function", None) is not None:
                getattr(model, f"make_{kind}_function")(force=True)


def _warn(message: str, items: Sequence[str]) -> None:
    if items:
        more = [f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
        listed = "\n  ".join([*items[:_LISTED], *more])
        warnings.warn(f"{message}\n  {listed}", stacklevel=4)


def _check_model(model: keras.Model) -> None:
    check_model(model)
    if not is_built(model) and not has_call(model):
        raise ExportValueError(
            f"Model '{model.name}' has no `call`, and a part of it has not been built. Before "
            "`restore`, call each part on a batch, or train the model for one step."
        )
    if not is_built(model):
        raise ExportValueError(
            f"Model '{model.name}' has not been built, so it has no variables to restore. "
            "Before `restore`, call it on a batch, or call `model.build(input_shape)`."
        )


def _version_path(source: str | os.PathLike[str] | ExportRecord) -> VersionPath:
    """Return the directory of a version. For a base directory, it is that of the newest one."""
    if not isinstance(source, str | os.PathLike | ExportRecord):
        raise ExportTypeError(
            f"Received version_path={source!r} of type {type(source)}. Expected a base directory "
            "or a version as a str or Path, or an `ExportRecord`. The `last_export` of a callback "
            "is one, or None if nothing was exported."
        )
    path = source.path if isinstance(source, ExportRecord) else absolute_path(source)
    store = open_store(path)
    if not store.exists():
        others = ", ".join(map(str, ExportDirectory(path.parent).versions())) or "no versions"
        raise VersionNotFoundError(
            f"There is no version at '{path}'. Its parent directory holds {others}."
        )
    held = ExportDirectory(path).versions()
    if held:
        return path / str(held[-1])
    if not any(store.stat(name) is not None for name in (SAVED_MODEL, MANIFEST)):
        raise VersionNotFoundError(no_versions(store))
    return path


def _verify(path: Path) -> None:
    if problems := version_problems(path):
        raise DamagedVersionError(
            f"'{path}' cannot be restored: {'; '.join(problems)}. Expected a version "
            "directory as it was published, or a copy of one."
        )


def _text(info: VariableInfo) -> str:
    return f"{info.path} {info.dtype}{list(info.shape)}"
