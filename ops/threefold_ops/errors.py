"""The errors that an operator reads: what went wrong and what to do, without a traceback."""

from __future__ import annotations


class OperatorError(Exception):
    """Something the operator can act on; the message is all the operator sees."""
