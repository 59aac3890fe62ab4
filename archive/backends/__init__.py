"""The backends of Keras that the engine can export from."""
