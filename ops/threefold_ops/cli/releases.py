"""The verbs of the registry: what serves, and what serves instead."""
