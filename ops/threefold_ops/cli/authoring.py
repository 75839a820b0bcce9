"""The verbs of a model folder: make one, and see what is wrong with it."""
