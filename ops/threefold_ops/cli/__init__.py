"""The `threefold` command: one verb per act."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from threefold.errors import ThreefoldError
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    import typer


def main() -> None:
    """Run the command; what an operator can act on is one plain message, and exit code 1."""
    try:
        load()()
    except (OperatorError, ThreefoldError) as error:
        print(f"threefold: {error}", file=sys.stderr)  # noqa: T201 - the command's own voice
        sys.exit(1)
    except (Boto3Error, BotoCoreError, ClientError) as error:
        print(f"threefold: AWS: want an answer, got {error}", file=sys.stderr)  # noqa: T201 - the command's own voice
        sys.exit(1)


def load() -> typer.Typer:
    """The command with all its verbs, which load when it runs: importing this package does nothing."""
    from threefold_ops.cli import (  # noqa: PLC0415
        authoring,  # noqa: F401
        dead_letters,  # noqa: F401
        evaluation,  # noqa: F401
        features,  # noqa: F401
        jobs,  # noqa: F401
        releases,  # noqa: F401
        verbs,  # noqa: F401
    )
    from threefold_ops.cli.console import app  # noqa: PLC0415

    return app
