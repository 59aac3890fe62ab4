"""What every test shares: a directory of its own to work in, and silence."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

# Before anything imports TensorFlow: it logs about the machine when it starts.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

# A process that has traced a thousand models has millions of objects, and looking at all of them
# again and again takes a tenth of the time.
gc.set_threshold(100_000, 50, 100)
IS_JAX = os.environ["KERAS_BACKEND"] == "jax"
if IS_JAX:  # Four devices for `keras.distribution`. All else uses the first one.
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty directory, where defaults such as ``logs`` may land."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True, scope="session")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let JAX keep what it compiles, for the other tests and for processes that they start."""
    if not IS_JAX:
        return
    import jax

    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in options.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs servers of object stores, and skip on JAX what is TensorFlow's alone.

    Let the test that takes longest come first.
    """
    items.sort(key=lambda item: item.path.stem != "test_resume_everything")
    for item in items:
        params = item.callspec.params.values() if hasattr(item, "callspec") else ()
        kinds = [value for value in params if isinstance(value, str)]  # Others may be tensors.
        if "buckets" in item.path.parts or {"s3", "google", "azure"} & {*kinds}:
            item.add_marker(pytest.mark.buckets)
        if IS_JAX and (mark := item.get_closest_marker("tensorflow_only")):
            item.add_marker(pytest.mark.skip(reason=f"TensorFlow only: {mark.args[0]}"))
