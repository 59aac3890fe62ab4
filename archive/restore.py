"""Restores a model from a version, so that training continues as if it had never stopped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
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
from .store.directory import ExportDirectory
from .store.download import local_copy
from .store.remote import VersionPath
from .store.store import absolute_path, open_store
from .store.verify import version_problems

_NO_OPTIMIZER = (
    "\nThe version holds no optimizer state. To export it, call "
    "`archive.add_variable_collection('optimizer_variables', model.optimizer.variables)` in your "
    "`endpoints` function. To restore without it, call `restore` before you compile the model."
)

# How many names a warning lists.
_LISTED = 10


def restore(
    model: keras.Model,
    version_path: str | os.PathLike[str],
    optimizer: keras.optimizers.Optimizer | None = None,
) -> None:
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

    A warning names what the version holds and the model cannot take, what the model
    holds and the version lacks, and layers that have another name in the model.

    Args:
        model: A built model. To continue training, compile it with the same
            optimizer first. If the model is not compiled, only its own variables are
            restored.
        version_path: String or `PathLike`. The directory of a version, such as
            ``record.path``, or a copy of one.
        optimizer: The optimizer of your training loop, if it is not the one that the model is
            compiled with.

    Raises:
        ExportError: If there is no version at the path, if it is damaged, or if its
            variables do not match the model's. The message lists each difference.

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
    if optimizer is not None:
        check_optimizer(optimizer)
    with local_copy(path) as local:
        if local == path:  # A copy was verified while it was made.
            _verify(local)
        _restore(model, path, local, optimizer)


def _restore(model: keras.Model, path: VersionPath, local: Path, own_optimizer: Any) -> None:
    """Restore the version at `path`, which `local` is, or is a copy of."""
    index, layers = read_index(local), read_layers(local)
    compiled = getattr(model, "optimizer", None)
    optimizer = compiled if own_optimizer is None else own_optimizer
    state = find_model_state([model], optimizer is not None, own_optimizer)
    match = _match(model, optimizer, index, state)
    if match.problems:
        raise MismatchError(
            f"'{path}' does not match model '{model.name}', so nothing was assigned:\n  "
            + "\n  ".join(match.problems)
            + ("" if optimizer is None or OPTIMIZER_VARIABLES in index else _NO_OPTIMIZER)
        )
    if optimizer is not None:  # Matching may have built it.
        state = find_model_state([model], True, own_optimizer)
    others = apart_from(state.variables, (variable for variable, _ in match.pairs))
    read = _reader(local)
    assigns: list[Callable[[], Any]] = [
        partial(variable.assign, _converted(read(info), variable)) for variable, info in match.pairs
    ]
    more, lost = _other_state(index, read, others, state.tables, optimizer is not None)
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
    """A function that reads a variable, and checks its dtype against the index.

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
    """Integers of a version in the width that a variable has on this backend.

    Raises:
        MismatchError: they do not fit into it.
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
    read: Callable[..., Any],
    variables: dict[str, Any],
    tables: dict[str, Any],
    with_optimizer: bool,
) -> tuple[list[Callable[[], Any]], list[str]]:
    """Find the state that `model.variables` does not list.

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
    lost += [f"{_text(info)} is not part of the model" for info in index.get(ELSEWHERE, ())]
    lost += [f"{address} is in the model, but not in the version" for address in left]
    return assigns, lost


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


def _check(model: keras.Model, path: VersionPath) -> None:
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
    if not open_store(path).exists():
        others = ", ".join(map(str, ExportDirectory(path.parent).versions())) or "no versions"
        raise VersionNotFoundError(
            f"There is no version at '{path}'. Its parent directory holds {others}."
        )
    if held := ExportDirectory(path).versions():
        raise VersionNotFoundError(
            f"'{path}' is a base directory, not a version. Pass one of its versions, such as "
            f"'{path / str(held[-1])}'."
        )


def _verify(path: Path) -> None:
    if problems := version_problems(path):
        raise DamagedVersionError(
            f"'{path}' cannot be restored: {'; '.join(problems)}. Expected a version "
            "directory as it was published, or a copy of one."
        )


def _text(info: VariableInfo) -> str:
    return f"{info.path} {info.dtype}{list(info.shape)}"
