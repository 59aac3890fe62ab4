"""Keras's own tests of its archive, in its wheel, pass with ours in its place."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
from keras.src.export import saved_model
from keras_export_callbacks import ExportArchive
saved_model.ExportArchive = ExportArchive
"""

# These look at the words of an error, or into an attribute that is not public.
OTHERS = ["test_input_signature_error", "test_export_archive_errors", "test_variable_collection"]


@pytest.mark.slow
def test_they_pass() -> None:
    names = ("saved_model_test", "tfsm_layer_test")
    specs = [importlib.util.find_spec(f"keras.src.export.{name}") for name in names]
    paths = [spec.origin for spec in specs if spec is not None and spec.origin is not None]
    if not paths:
        pytest.skip("This version of Keras comes without its tests.")
    Path("with_ours.py").write_text(PLUGIN)
    Path("none.ini").write_text("[pytest]")
    options = ["-q", "-p", "with_ours", "-p", "no:cacheprovider", "-c", "none.ini"]
    others = " and ".join(f"not {name}" for name in OTHERS)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-k", others, *paths],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-5000:]
    assert " passed" in ran.stdout
