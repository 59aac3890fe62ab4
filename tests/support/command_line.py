"""``keras-exports`` in this process, and versions to look at with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from keras_export_callbacks.cli import main

from .versions import write_version

BASE = Path("base")


def write_versions() -> None:
    """Write three versions that were exported for a metric."""
    for version, value in ((1, 0.5), (2, 0.25), (3, 0.75)):
        write_version(
            BASE,
            version,
            metrics={"loss": value},
            monitor="loss",
            mode="min",
            value=value,
            step=100,
        )


def run(*args: Any, code: int = 0, env: dict[str, str] | None = None) -> Result:
    """Run a command, and assert its exit code."""
    env = {"COLUMNS": "200"} | (env or {})
    result = CliRunner(env=env).invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result
