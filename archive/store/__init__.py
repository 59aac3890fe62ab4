"""Where versions are: names, manifests, commits.

`store.py` says what every place for versions can do, and `open_store` finds out
which kind a path is: `local.py` renames a version into place, `copying.py` copies
it there file by file. `staging.py` has the locks and the sweeping. Above the
store, and the same for every place: `record.py` (the manifest), `publish.py`,
`verify.py`, and `directory.py`, what a user can ask.

Nothing here imports TensorFlow, Keras or NumPy, so that whoever only looks at a
directory of versions waits for none of them.
"""
