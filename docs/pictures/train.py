"""Train on digits, and export each epoch that improves. `terminal.py` shows what this prints.

Usage: python train.py [EPOCHS]
"""

from __future__ import annotations

import sys

import keras
from digits import classifier, digits

from keras_export_callbacks import ExportOnImprove

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
x, y, val_x, val_y = digits()
classifier(learning_rate=0.005).fit(
    x,
    y,
    validation_data=(val_x, val_y),
    epochs=epochs,
    batch_size=8,
    verbose=2,
    callbacks=[
        keras.callbacks.TensorBoard("logs"),
        ExportOnImprove("served/digits", "val_accuracy", verbose=1),
    ],
)
