"""Finds, names and restores the state of a model."""
