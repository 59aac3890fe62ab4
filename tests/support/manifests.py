"""Manifests of every kind, as hypothesis draws them and as a writer leaves them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from keras_export_callbacks.archive.store.files import FileInfo
from keras_export_callbacks.archive.store.record import (
    MANIFEST,
    EndpointInfo,
    ParityInfo,
    Scalar,
    TensorInfo,
)

from .versions import a_record

INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SECONDS = st.floats(0, allow_infinity=False)
NAMES = st.text(max_size=8) | st.binary(max_size=8).map(os.fsdecode)
SCALARS: st.SearchStrategy[Scalar] = st.one_of(st.none(), st.booleans(), INTS, FLOATS, NAMES)
SHAPES = st.none() | st.lists(st.none() | INTS, max_size=3).map(tuple)
TENSORS = st.dictionaries(NAMES, st.builds(TensorInfo, SHAPES, NAMES), max_size=2)
RECORDS = st.builds(
    a_record,
    version=st.integers(1, 2**63 - 1),
    created=NAMES,
    epoch=st.none() | INTS,
    step=st.none() | INTS,
    reason=NAMES,
    monitor=st.none() | NAMES,
    mode=st.sampled_from([None, "min", "max"]),
    value=st.none() | FLOATS,
    metrics=st.dictionaries(NAMES, FLOATS, max_size=3),
    endpoints=st.dictionaries(NAMES, st.builds(EndpointInfo, TENSORS, TENSORS), max_size=2),
    collections=st.dictionaries(NAMES, INTS, max_size=2),
    bytes=st.integers(0, 2**63 - 1),
    graph_reused=st.booleans(),
    stall_seconds=SECONDS,
    write_seconds=SECONDS,
    libraries=st.dictionaries(NAMES, NAMES, max_size=2),
    files=st.dictionaries(NAMES, st.builds(FileInfo, st.integers(0, 2**63 - 1), NAMES), max_size=2),
    weights=st.sampled_from(["current", "validated"]),
    parity=st.none()
    | st.builds(ParityInfo, FLOATS, FLOATS, st.dictionaries(NAMES, FLOATS, max_size=2)),
    trial=st.none() | NAMES,
    execution=st.none() | INTS,
    attempt=st.none() | INTS,
    project=st.none() | NAMES,
    copied_from=st.none() | NAMES,
    withdrawn=st.lists(INTS, max_size=2).map(tuple),
    hyperparameters=st.none() | st.dictionaries(NAMES, SCALARS, max_size=3),
    metadata=st.dictionaries(NAMES, SCALARS, max_size=3),
)


@contextmanager
def manifest_of(version: int, content: bytes) -> Iterator[Path]:
    """The directory of a version that holds nothing but a manifest with this content."""
    with tempfile.TemporaryDirectory() as base:
        path = Path(base, str(version), MANIFEST)
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        yield path.parents[1]


def manifest(**changes: Any) -> dict[str, Any]:
    """The content of a valid manifest of version 1, with changes."""
    tuner = {"trial": "00", "execution": 0, "attempt": 0, "project": "search"}
    tuner["hyperparameters"] = {"units": 8}
    parity = ParityInfo(0.1, 0.2, {"serve/output_0": 0.0})
    record = a_record(value=0.5, metrics={"m": 0.5}, parity=parity, metadata={"fold": 3}, **tuner)
    content: dict[str, Any] = json.loads(record.to_json())
    return content | changes
