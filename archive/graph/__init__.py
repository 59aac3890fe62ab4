"""Endpoints, signatures and traces. Tracing must happen on the training thread."""
