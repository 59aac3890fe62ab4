"""The export engine: what becomes a SavedModel, and how it reaches a directory.

Installed as ``keras_export_callbacks.archive``. Its modules know TensorFlow and
directories; none of them knows callbacks. Read them in the order an export
takes: ``export_archive`` (what to export) → ``graph`` and ``snapshot`` (on the
training thread) → ``weights`` (the bytes) → ``publish`` (one rename) →
``record`` and ``directory`` (what was published).
"""
