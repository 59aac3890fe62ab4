"""TensorFlow's progress messages are dropped on the thread that saves, and nowhere else."""

from __future__ import annotations

import logging
import threading

import pytest

from keras_export_callbacks.archive.graph.quiet import quiet


def test_only_this_thread_is_quiet_and_only_below_warnings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("tensorflow")
    caplog.set_level(logging.INFO, "tensorflow")
    logger.addHandler(caplog.handler)  # It passes nothing on to the root.
    try:
        with quiet():
            logger.info("progress here")
            logger.warning("warning here")
            other = threading.Thread(target=lambda: logger.info("progress elsewhere"))
            other.start()
            other.join()
        logger.info("progress afterwards")
    finally:
        logger.removeHandler(caplog.handler)
    messages = set(caplog.messages)
    assert "progress here" not in messages
    assert {"warning here", "progress elsewhere", "progress afterwards"} <= messages
