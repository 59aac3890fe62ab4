"""The export engine: it writes Keras models as SavedModels and publishes them in a directory.

It is installed as ``keras_export_callbacks.archive``. Its modules use TensorFlow
and directories, but no callbacks. Read them in the order of an export:
``export_archive`` registers what to export. ``graph`` and ``backends`` trace it
and read the variables, on the training thread. ``writer`` and ``savedmodel``
write the files. ``parity`` compares them with the model. ``store`` publishes
the version.
"""
