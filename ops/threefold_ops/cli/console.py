"""The command that all verbs belong to, and its voice."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One ONNX model, three doors on AWS Lambda: HTTPS, CSV files in S3, and SQS messages.\n\n"
    "Commands go to the local system that runs from this clone ('threefold up'); with --aws they go to your account.",
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:  # noqa: ANN401 - JSON
    """Print a document for programs."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")
