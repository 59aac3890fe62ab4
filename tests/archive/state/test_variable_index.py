"""The index of variables: what is written is read back, and more is passed over."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from keras_export_callbacks.archive.errors import DamagedVersionError
from keras_export_callbacks.archive.state.variable_index import (
    INDEX,
    VariableInfo,
    read_index,
    read_layers,
    write_index,
)

KERNEL = VariableInfo("dense/kernel", (3, None), "float32", "_all_variables/0")


def test_unknown_keys_change_nothing() -> None:
    write_index(Path(), {"variables": (KERNEL,), "optimizer_variables": ()}, {})
    content = json.loads(Path(INDEX).read_text())
    content["variables"][0] |= {"novelty": {"a": [1]}, "checksum": 2**64}
    Path(INDEX).write_text(json.dumps(content))
    assert read_index(Path()) == {"variables": (KERNEL,), "optimizer_variables": ()}


def test_names_that_are_not_utf_8_are_read_back() -> None:
    index = {"variables": (KERNEL, replace(KERNEL, path="d\udce9nse/kernel"))}
    write_index(Path(), index, {"layer": {"vocabulary": ("\ud800", 1, 0.5)}})
    content = json.loads(Path(INDEX).read_text())
    content["variables"][0]["\udce9"] = "novelty"
    Path(INDEX).write_text(json.dumps(content))
    assert read_index(Path()) == index
    assert read_layers(Path()) == {"layer": {"vocabulary": ("\ud800", 1, 0.5)}}


def test_a_missing_key_is_refused() -> None:
    write_index(Path(), {"variables": (KERNEL,)}, {})
    content = json.loads(Path(INDEX).read_text())
    del content["variables"][0]["key"]
    Path(INDEX).write_text(json.dumps(content))
    with pytest.raises(DamagedVersionError, match=r"variables.json' cannot be used: 'index"):
        read_index(Path())
