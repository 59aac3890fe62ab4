"""The test, before publishing, that an artifact and the model compute the same outputs."""
