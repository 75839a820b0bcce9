"""The one rule for where a command goes: the local system of this clone, unless --aws is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from threefold_ops import target as targets
from threefold_ops.errors import OperatorError
from threefold_ops.local import emulator
from threefold_ops.paths import STATE
from threefold_ops.system import System, find_system

if TYPE_CHECKING:
    from threefold_ops.target import Target

Aws = Annotated[bool, typer.Option("--aws", help="Go to AWS with your own credentials, not to the local system.")]
Stage = Annotated[str, typer.Option(help="The stage of the account; local systems are always dev.")]
Region = Annotated[str | None, typer.Option(help="The AWS region; default: your profile's.")]
Profile = Annotated[str | None, typer.Option(help="The AWS profile.")]


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a command goes."""

    target: Target
    stage: str

    def system(self) -> System:
        """The system that is deployed there."""
        return find_system(self.target, self.stage)


def choose(*, aws: bool, stage: str = "dev", region: str | None = None, profile: str | None = None) -> Choice:
    """Apply the rule.

    Raises:
        OperatorError: no local system runs, and --aws was not said.
    """
    if aws:
        return Choice(targets.aws(region, profile), stage)
    found = emulator.find(STATE)
    if found is None:
        message = "no local system is running: start one with 'threefold up', or say --aws to go to your account"
        raise OperatorError(message)
    return Choice(targets.emulator(found.endpoint_url), "dev")
