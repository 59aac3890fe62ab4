"""An endpoint as it is revived from an artifact."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_export_callbacks import ExportArchive

BATCH = np.arange(6, dtype="float32").reshape(2, 3)
FREE = tf.TensorSpec((None, 3))


def export(fn: Any, signature: Any = None) -> Any:
    archive = ExportArchive()
    archive.add_endpoint("serve", fn, signature)
    archive.write_out("artifact", verbose=False)
    return tf.saved_model.load("artifact")
