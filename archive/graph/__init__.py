"""What is served: endpoints, signatures and the trace. All of it runs on the training thread."""
