"""The command that all verbs belong to, and its voice."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from rich.console import Console

from threefold_ops.figures import to_document

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"threefold {metadata.version('threefold')}\n")
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One ONNX model, three doors on AWS Lambda: HTTPS, CSV files in S3, and SQS messages.\n\n"
    "Commands go to the local system that runs from this clone ('threefold up'); with --aws they go to your account.",
)


@app.callback()
def _main(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


# What people wrote is text, brackets and colons and all.
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def print_json(document: Any) -> None:  # noqa: ANN401 - JSON
    """Print a document for programs: strict JSON, numbers that are not finite as the contract's texts."""
    text = json.dumps(to_document(document), indent=2, default=str, allow_nan=False, ensure_ascii=False)
    try:
        sys.stdout.write(text + "\n")
    except UnicodeEncodeError:  # a terminal that cannot write it; nothing was
        sys.stdout.write(json.dumps(json.loads(text), indent=2) + "\n")
