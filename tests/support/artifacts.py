"""Read the contents of a SavedModel on disk, for tests that check them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def checkpoint(path: str | Path) -> dict[str, Any]:
    """Return every tensor in the checkpoint of the SavedModel at `path`, by key."""
    reader = tf.train.load_checkpoint(os.path.join(path, "variables", "variables"))
    keys = set(reader.get_variable_to_shape_map()) - {_OBJECT_GRAPH}
    return {key: reader.get_tensor(key) for key in sorted(keys)}


def stored_elements(path: str | Path) -> int:
    """Return how many numbers the checkpoint of the SavedModel at `path` stores."""
    listed = tf.train.list_variables(os.path.join(path, "variables", "variables"))
    return sum(int(np.prod(shape)) for key, shape in listed if key != _OBJECT_GRAPH)


def elements(variables: list[Any]) -> int:
    """Return how many numbers `variables` hold together."""
    return sum(int(np.prod(variable.shape)) for variable in variables)


def signatures(path: str | Path) -> dict[str, Any]:
    """Return names, shapes and dtypes of every signature of the SavedModel at `path`."""
    loaded = tf.saved_model.load(str(path))
    return {
        name: (signature.structured_input_signature, signature.structured_outputs)
        for name, signature in loaded.signatures.items()
    }


def assert_same_artifact(one: str | Path, other: str | Path) -> None:
    """Assert that two artifacts have the same keys, values bit for bit, and signatures."""
    ours, theirs = checkpoint(one), checkpoint(other)
    assert list(ours) == list(theirs)
    for key in ours:
        assert_same_bits(ours[key], theirs[key])
    assert signatures(one) == signatures(other)


def assert_same_bits(one: Any, other: Any) -> None:
    """Assert that two arrays have equal dtypes, shapes and bytes, or equal strings."""
    one, other = np.asarray(one), np.asarray(other)
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    if one.dtype == object:
        assert one.tolist() == other.tolist()
    else:
        assert one.tobytes() == other.tobytes()


def assert_same_outputs(ours: Any, theirs: Any) -> None:
    """Assert that two structures of tensors are equal, except for rounding in a compiled graph."""
    ours, theirs = tf.nest.flatten(ours), tf.nest.flatten(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        rounding = 2e-2 if one.dtype.size == 2 else 1e-5
        one, other = (tf.cast(values, tf.float64) for values in (one, other))
        np.testing.assert_allclose(one, other, rtol=rounding, atol=rounding)


def shards(path: str | Path) -> dict[int, int]:
    """Return the size of each data file in the checkpoint of the SavedModel at `path`, by inode."""
    stats = [data.stat() for data in Path(path, "variables").glob("variables.data-*")]
    return {stat.st_ino: stat.st_size for stat in stats}
