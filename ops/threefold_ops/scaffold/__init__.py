"""A model folder's first draft, out of a model file and somebody's data."""
