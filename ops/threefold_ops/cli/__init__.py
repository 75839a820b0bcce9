"""The `threefold` command: one verb per act."""

from __future__ import annotations

import sys

from threefold.errors import ThreefoldError
from threefold_ops.errors import OperatorError


def main() -> None:
    """Run the command; what an operator can act on is one plain message, and exit code 1."""
    # The verbs load when the command runs: importing this package does nothing.
    from threefold_ops.cli.verbs import app  # noqa: PLC0415

    try:
        app()
    except (OperatorError, ThreefoldError) as error:
        print(f"threefold: {error}", file=sys.stderr)  # noqa: T201 - the command's own voice
        sys.exit(1)
