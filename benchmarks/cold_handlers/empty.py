"""Answers without doing anything: what the runtime client itself takes."""

from __future__ import annotations


def handler(_event: object, _context: object) -> dict[str, object]:
    """Answer."""
    return {"statusCode": 200, "body": "{}"}
