"""Handlers that a cold start is compared with; each is copied alone, as a function's code."""
