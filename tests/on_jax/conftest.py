"""The tests here need Keras on JAX: `KERAS_BACKEND=jax pytest tests/on_jax`."""

from __future__ import annotations

import keras

collect_ignore_glob = [] if keras.backend.backend() == "jax" else ["test_*.py"]
