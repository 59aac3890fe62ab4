"""Versions in a directory or a bucket: their names, their manifests, and how they appear.

`store.py` has the interface of a store, and `open_store`, which chooses the store for a
path. `local.py` is the store in a local directory. It renames a version into place, or
uses `copying.py` where directories cannot be renamed. `buckets/` is the store in a
bucket. `staging.py` has the locks of writers, and deletes what dead writers left.

The other modules are the same for every store: `record.py` has the manifest, `publish.py`
and `verify.py` publish and verify versions, and `directory.py` is what users call.
`below.py` finds the base directories below a directory, for messages.

No module here imports TensorFlow, Keras or NumPy. Programs that only look at versions
start faster without them.
"""
