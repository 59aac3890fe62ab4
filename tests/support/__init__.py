"""Helpers of several tests: models, data, other processes, TensorFlow's C library."""
