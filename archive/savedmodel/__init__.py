"""Writes the files of a SavedModel, on any thread. Files that did not change are linked."""
