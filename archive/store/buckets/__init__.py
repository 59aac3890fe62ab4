"""Versions in a bucket of S3, Google Cloud Storage or Azure.

`store` publishes and reads versions. `claims` decides which writer may publish the next number.
`objects` reads and writes the objects of a bucket. `clients` connects to the vendors' servers.
`failures` explains errors in one line.
"""
