"""Does the artifact compute what the model does? It is loaded by TensorFlow's C library to see."""
