"""Run code in other processes, to test what must hold outside the exporting process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
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


# Any warning is an error, except one by Keras on JAX 0.12. Python takes the last option that fits.
_WARNINGS = ("-W", "error", "-W", "ignore:Explicitly requested dtype int64")


@contextlib.contextmanager
def started(script: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process for the length of a ``with`` block, any warning in it an error."""
    with subprocess.Popen(
        [sys.executable, *_WARNINGS, "-c", script, *args],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def run_together(script: str, *arguments: list[str]) -> list[str]:
    """What processes print that begin at the same time, all of which must succeed.

    Each of them says "ready" when it is, and then waits for a line.
    """
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(script, *args)) for args in arguments]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return printed


def run_in_c(path: Path, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the outputs of a signature, from TensorFlow's C library in another process."""
    (outputs,) = run_apart(str(path), [(signature, inputs)])
    return outputs


def free_port() -> int:
    """Return a port on this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
