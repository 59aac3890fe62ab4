"""The test that an artifact computes what the model computes, before it is published."""
