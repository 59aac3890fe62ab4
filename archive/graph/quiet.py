"""Silences TensorFlow's log of a save, but only on the thread that saves."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop the log records below WARNING that this thread makes in a ``with`` block.

    `tf.saved_model.save` logs its progress at INFO through two loggers. Setting their
    level would silence the training thread as well, so this filters by thread.
    """
    thread = threading.get_ident()

    def from_elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.WARNING

    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    for logger in loggers:
        logger.addFilter(from_elsewhere)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(from_elsewhere)
