"""Where versions are: names, manifests, commits.

Nothing here imports TensorFlow, Keras or NumPy, so that whoever only looks at a
directory of versions waits for none of them.
"""
