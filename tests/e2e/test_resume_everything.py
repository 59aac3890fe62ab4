"""In a fresh process training goes on bit for bit: every optimizer, every random layer."""

from __future__ import annotations

import json

import keras
import pytest
from support.processes import run_python
from support.resumable import CASES

# A warning of the second process is an error: everything must be restored.
BEGIN = """
from support.resumable import CASES, begin
for name in CASES:
    begin(name)
"""
RESUME = """
import json, warnings
from support.resumable import CASES, resume
warnings.simplefilter("error")
found = {}
for name in CASES:
    try:
        found[name] = resume(name)
    except Exception as error:
        found[name] = repr(error)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_training_goes_on_bit_for_bit() -> None:
    """One process begins all cases, and one resumes them: a process for each would take an hour."""
    run_python(BEGIN)
    resumed = json.loads(run_python(RESUME).splitlines()[-1])
    assert resumed == dict.fromkeys(CASES, "the same")


def test_every_optimizer_of_keras_is_among_them() -> None:
    names = {name for name in dir(keras.optimizers) if name[0].isupper()}
    others = {"Optimizer", "OptimizerMap", "LossScaleOptimizer"}
    assert names - others == {name.partition(",")[0] for name in CASES if "," in name} & names
