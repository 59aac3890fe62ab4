"""Run code in other processes, to test what must hold outside the exporting process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from keras_export_callbacks.archive.parity.c_library import run_apart


def run_python(script: str, *args: str, **environment: str) -> str:
    """Run a script in a fresh interpreter, which must succeed, and return what it prints."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *args],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def run_in_c(path: Path, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the outputs of a signature, from TensorFlow's C library in another process."""
    (outputs,) = run_apart(str(path), [(signature, inputs)])
    return outputs


def free_port() -> int:
    """Return a port on this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
