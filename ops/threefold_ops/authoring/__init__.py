"""A model folder: read, checked, and made into a package."""
