"""What Keras runs on."""
