"""What several tests use: models, data, other processes, TensorFlow's C library."""
