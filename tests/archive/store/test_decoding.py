"""A manifest is strict JSON of the declared types, and an error names the place."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.manifests import (
    NAMES,
    RECORDS,
    SCALARS,
    manifest,
    manifest_of,
)
from support.properties import untimed

from keras_export_callbacks import ExportRecord
from keras_export_callbacks.archive.errors import DamagedVersionError
from keras_export_callbacks.archive.store.record import (
    parse_record,
    read_record,
)
from keras_export_callbacks.archive.store.store import open_store

JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS | st.sampled_from([10**400, -(10**400), math.nan, math.inf, -math.inf, 2**63]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(NAMES, values, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid manifest with a value anywhere in it replaced, removed or added."""
    content = manifest()
    node: Any = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return json.dumps(content).encode()
        key = draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or draw(st.booleans()):
            break
        node = node[key]
    if draw(st.booleans()):
        node[key] = draw(JSON)
    elif draw(st.booleans()) and isinstance(node, dict):
        node[draw(NAMES)] = draw(JSON)
    else:
        del node[key]
    return json.dumps(content).encode()


@st.composite
def garbled(draw: st.DrawFn) -> bytes:
    """A valid manifest with some of its bytes replaced."""
    content = json.dumps(manifest()).encode()
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(start + 20, len(content))))
    return content[:start] + draw(st.binary(max_size=8)) + content[end:]


HOSTILE = st.one_of(mutated(), garbled(), JSON.map(json.dumps).map(str.encode), st.binary())


@untimed
@given(HOSTILE)
def test_a_hostile_manifest_is_refused_or_is_a_record_like_any_other(content: bytes) -> None:
    with manifest_of(1, content) as version_dir:
        try:
            record = read_record(open_store(version_dir))
        except DamagedVersionError:
            return
        # All that is done with records must work with it.
        assert record.version == 1
        if objective := record.objective:
            objective.ranked([record])
        for monitor in record.metrics:
            assert math.isfinite(record.measured(monitor) or 0.0)
        assert parse_record(record.to_json().encode(), version_dir) == record


DEEP = 100_000
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"value": math.nan}, "NaN is not JSON"),
    "infinity": ({"metrics": {"m": math.inf}}, "Infinity is not JSON"),
    "huge int for a float": ({"value": 10**400}, r"'value' is 10{29}, expected float \| null"),
    "huge int": ({"step": 10**400}, r"'step' is 10{29}, expected int \| null"),
    "int beyond int64": ({"bytes": 2**63}, f"expected int <= {2**63 - 1}"),
    "string for an int": ({"epoch": "3"}, r"'epoch' is '3', expected int \| null"),
    "float for an int": ({"step": 3.0}, "'step' is 3.0"),
    "bool for an int": ({"epoch": True}, "'epoch' is True"),
    "bool for a float": ({"stall_seconds": False}, "'stall_seconds' is False, expected float"),
    "int for a bool": ({"graph_reused": 1}, "'graph_reused' is 1, expected bool"),
    "null for a required": ({"reason": None}, "'reason' is None, expected str"),
    "other mode": ({"mode": "auto"}, "'mode' is 'auto'.*expected 'min' or 'max'"),
    "list for an object": ({"metrics": []}, r"'metrics' is \[\]"),
    "string for a metric": ({"metrics": {"m": "1"}}, "'metrics.m' is '1', expected float"),
    "object for a shape": (
        {"endpoints": {"serve": {"inputs": {"x": {"shape": {}, "dtype": "f"}}, "outputs": {}}}},
        "'endpoints.serve.inputs.x.shape' is {}",
    ),
    "bool in a shape": (
        {"endpoints": {"serve": {"inputs": {"x": {"shape": [True], "dtype": "f"}}, "outputs": {}}}},
        r"'endpoints.serve.inputs.x.shape.0' is True, expected int \| null",
    ),
    "endpoint without outputs": (
        {"endpoints": {"serve": {"inputs": {}}}},
        "'endpoints.serve' is .*missing required field outputs",
    ),
    "file without a digest": (
        {"files": {"f": {"size": 1, "path": "/etc"}}},
        "'files.f' is .*missing required field sha256",
    ),
    "huge int in a shape": (
        {"endpoints": {"e": {"inputs": {"x": {"shape": [2**63], "dtype": "f"}}, "outputs": {}}}},
        f"'endpoints.e.inputs.x.shape.0' is {2**63}, expected int <= {2**63 - 1}",
    ),
    "nested hyperparameter": (
        {"hyperparameters": {"a": [1]}},
        r"'hyperparameters.a' is \[1\], expected bool",
    ),
    "negative size": ({"bytes": -5}, "'bytes' is -5, expected int >= 0"),
    "huge size of a file": (
        {"files": {"f": {"size": 10**330, "sha256": ""}}},
        r"'files.f.size' is 10{29}\d*, expected int",
    ),
    "huge int for an object": (
        {"files": {"f": 10**500}},
        "'files.f' is 10{29}, expected object, got a number that is too large",
    ),
    "lone surrogate for an object": (
        {"files": {"f": "\ud800"}},
        r"'files.f' is '\\ud800', expected another type, got str",
    ),
    "negative time": ({"write_seconds": -0.5}, "'write_seconds' is -0.5, expected float >= 0"),
    "older schema": ({"schema": 0}, "expected schema 1, found 0"),
    "huge schema": ({"schema": 2**63}, f"'schema' is {2**63}, expected int <="),
    "other version in a newer schema": ({"schema": 2, "version": 2}, "it says version 2"),
    "no version in a newer schema": ({"schema": 2, "version": "1"}, "'version' is '1'"),
    "bool for the schema": ({"schema": True}, "'schema' is True, expected int"),
    "other version": ({"version": 2}, "it says version 2, but its directory is '1'"),
    "version 0": ({"version": 0}, "it says version 0"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_manifest_with_a_wrong_value_is_refused(changes: dict[str, Any], message: str) -> None:
    content = json.dumps(manifest(**changes)).encode()
    with manifest_of(1, content) as version_dir, pytest.raises(DamagedVersionError, match=message):
        read_record(open_store(version_dir))


@pytest.mark.parametrize("missing", ["schema", *list(manifest())[1:18]])
def test_a_manifest_without_a_key_is_refused(missing: str) -> None:
    content = manifest()
    del content[missing]
    with (
        manifest_of(1, json.dumps(content).encode()) as version_dir,
        pytest.raises(DamagedVersionError, match=f"'{missing}' is"),
    ):
        read_record(open_store(version_dir))


# What a later version may add: of any name that is not known, with any value that JSON has.
UNKNOWN_KEYS = st.sampled_from(["path", "unread", "novelty"]) | NAMES.map("new_{}".format)
UNKNOWN = st.dictionaries(
    UNKNOWN_KEYS, JSON.filter(lambda value: not has_constants(value)), min_size=1, max_size=2
)


def has_constants(value: Any) -> bool:
    """Whether JSON cannot hold a value: NaN or an infinity."""
    text = json.dumps(value)
    return any(constant in text for constant in ("NaN", "Infinity"))


def objects(content: dict[str, Any]) -> list[dict[str, Any]]:
    """All objects of a manifest with keys that are known, however deep; not those with names."""
    endpoints = list(content["endpoints"].values())
    tensors = [
        tensor
        for endpoint in endpoints
        for part in ("inputs", "outputs")
        for tensor in endpoint[part].values()
    ]
    parity = [content["parity"]] if "parity" in content else []
    return [content, *parity, *endpoints, *tensors, *content["files"].values()]


@untimed
@given(RECORDS, st.data())
def test_unknown_keys_change_nothing_at_any_depth(
    record: ExportRecord, drawn: st.DataObject
) -> None:
    content = json.loads(record.to_json())
    for known in objects(content):
        known.update(drawn.draw(UNKNOWN))
    text = json.dumps(content).encode()
    again = parse_record(text, record.path.with_name(str(record.version)))
    assert replace(again, path=record.path) == record


def test_unknown_numbers_may_be_larger_than_any_here() -> None:
    text = json.dumps(manifest(novelty="!")).replace('"!"', "[1e999, 18446744073709551615]")
    assert parse_record(text.encode(), Path("base", "1")).metrics == {"m": 0.5}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b'"a"',
        b"{",
        b"{}" * 2,
        b"\xff\xfe",
        json.dumps(manifest()).encode("utf-16"),
        json.dumps(manifest()).encode("utf-8-sig"),
        json.dumps(manifest(reason="ä"), ensure_ascii=False).encode("latin-1"),
        b"[" * DEEP,
        b'{"schema": ' * DEEP,
        json.dumps(manifest(value="!")).replace('"!"', "1e999").encode(),
        json.dumps(manifest(value="!")).replace('"!"', "1" * 5000).encode(),
        json.dumps(manifest(value="!")).replace('"!"', "-Infinity").encode(),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with (
        manifest_of(1, content) as version_dir,
        pytest.raises(DamagedVersionError, match="cannot be used"),
    ):
        read_record(open_store(version_dir))


def test_the_size_of_a_manifest_is_bounded() -> None:
    content = json.dumps(manifest()).encode()
    with manifest_of(1, content.ljust(16 * 2**20)) as version_dir:
        assert read_record(open_store(version_dir)).version == 1
    with (
        manifest_of(1, content.ljust(16 * 2**20 + 1)) as version_dir,
        pytest.raises(DamagedVersionError, match="larger than"),
    ):
        read_record(open_store(version_dir))
