"""Every layer of Keras that holds state computes the same after `restore`, or a warning names it.

One process exports them all. Another one restores each into a layer that was built
and adapted with other data.
"""

from __future__ import annotations

import inspect
import json

import keras
import pytest
from support.processes import run_python
from support.stateful_layers import CASES, COVERED, NAMED, OTHERS, STATELESS

BEGIN = """
from support.stateful_layers import CASES, begin
for name in CASES:
    begin(name)
"""
RESUME = """
import json
from support.stateful_layers import CASES, resume
print(json.dumps({name: resume(name) for name in CASES}))
"""


@pytest.mark.zoo
def test_a_layer_computes_what_it_did_or_is_named() -> None:
    run_python(BEGIN)
    resumed = json.loads(run_python(RESUME).splitlines()[-1])
    assert resumed.keys() == {*CASES}
    for name, (is_same, warned) in resumed.items():
        assert is_same == (name not in NAMED), name
        assert len(warned) == (name in NAMED), name
        assert all("(layers/0) saves more than its variables" in message for message in warned)


def test_somebody_has_looked_at_every_layer_of_keras() -> None:
    names: dict[type, set[str]] = {}
    for name, kind in inspect.getmembers(keras.layers, inspect.isclass):
        if issubclass(kind, keras.Layer):
            names.setdefault(kind, set()).add(name)  # Some have several.
    known = COVERED | STATELESS | OTHERS
    assert [sorted(of_one) for of_one in names.values() if not of_one & known] == []
