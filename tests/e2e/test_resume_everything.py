"""In a fresh process training goes on bit for bit: every optimizer, every random layer."""

from __future__ import annotations

import json

import keras
import pytest
from support.processes import run_python
from support.resumable import CASES

# A warning of the second process is an error: everything must be restored.
BEGIN = """
import sys
from support.resumable import CASES, begin
for name in list(CASES)[:: int(sys.argv[1])]:
    begin(name)
"""
RESUME = """
import json, sys, warnings
from support.resumable import CASES, resume
warnings.simplefilter("error")
found = {}
for name in list(CASES)[:: int(sys.argv[1])]:
    try:
        found[name] = resume(name)
    except Exception as error:
        found[name] = repr(error)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.zoo)])
def test_training_goes_on_bit_for_bit(every: int) -> None:
    """One process begins the cases, and one resumes them: a process for each would take an hour.

    All of them take minutes, so that every change is tried with an eighth.
    """
    run_python(BEGIN, str(every))
    resumed = json.loads(run_python(RESUME, str(every)).splitlines()[-1])
    assert resumed == dict.fromkeys(list(CASES)[::every], "the same")


def test_every_optimizer_of_keras_is_among_them() -> None:
    names = {name for name in dir(keras.optimizers) if name[0].isupper()}
    others = {"Optimizer", "OptimizerMap", "LossScaleOptimizer"}
    assert names - others == {name.partition(",")[0] for name in CASES if "," in name} & names
