"""The bytes of a SavedModel, of which only what changed is written. It may run on any thread."""
