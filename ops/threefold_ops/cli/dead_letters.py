"""The verbs of the dead-letter queue: what was given up, sent again or deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from threefold_ops.cli.choice import Aws, Region, Stage, choose
from threefold_ops.cli.console import Json, app, err, out, print_json
from threefold_ops.dead_letters import DeadLetterQueue, chosen
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from threefold_ops.dead_letters import DeadLetter

dlq = typer.Typer(help="Messages that the stream door gave up.", no_args_is_help=True)
app.add_typer(dlq, name="dlq")

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids, or what they begin with.")]
OfModel = Annotated[str | None, typer.Option("--model", help="Those of one model alone.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


@dlq.command(name="list")
def list_letters(
    *, model: OfModel = None, aws: Aws = False, stage: Stage = "dev", region: Region = None, as_json: Json = False
) -> None:
    """List them, the oldest first, each with what its last try failed with."""
    queue = _queue(aws=aws, stage=stage, region=region)
    try:
        found = _sorted(chosen(queue.read(), [], model))
    finally:
        queue.put_back()
    if as_json:
        print_json([letter.to_json() for letter in found])
        return
    for letter in found:
        out.print(f"{letter.at}  {letter.model}  {letter.id}: {letter.reason}", markup=False, soft_wrap=True)


@dlq.command()
def show(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="An id, or what it begins with.")],
    *,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
) -> None:
    """Print all that is known of one, its body included, as JSON."""
    queue = _queue(aws=aws, stage=stage, region=region)
    try:
        found = chosen(queue.read(), [identifier], None)
    finally:
        queue.put_back()
    print_json(found[0].to_json() if len(found) == 1 else [letter.to_json() for letter in found])


@dlq.command()
def redrive(
    identifiers: Ids = None,
    *,
    model: OfModel = None,
    every: All = False,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
) -> None:
    """Send them to the requests queue once more, the oldest first, each under its first identity."""
    _check(identifiers, model, every=every)
    queue = _queue(aws=aws, stage=stage, region=region)
    try:
        found = _sorted(chosen(queue.read(), identifiers or [], model))
        for letter in found:
            queue.redrive(letter)
    finally:
        queue.put_back()
    err.print(f"sent again: {len(found)}")


@dlq.command()
def purge(
    identifiers: Ids = None,
    *,
    model: OfModel = None,
    every: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
) -> None:
    """Delete them for good; they will have no outcome."""
    _check(identifiers, model, every=every)
    queue = _queue(aws=aws, stage=stage, region=region)
    try:
        found = _sorted(chosen(queue.read(), identifiers or [], model))
        if found and not yes:
            typer.confirm(f"Delete {len(found)} messages for good?", abort=True, err=True)
        for letter in found:
            queue.remove(letter.handle)
    finally:
        queue.put_back()
    err.print(f"deleted: {len(found)}")


def _check(identifiers: list[str] | None, model: str | None, *, every: bool) -> None:
    if not identifiers and model is None and not every:
        raise OperatorError("dead letters: want ids, --model or --all, got none of them")


def _sorted(letters: list[DeadLetter]) -> list[DeadLetter]:
    return sorted(letters, key=lambda letter: letter.at)


def _queue(*, aws: bool, stage: str, region: str | None) -> DeadLetterQueue:
    choice = choose(aws=aws, stage=stage, region=region)
    system = choice.system()
    return DeadLetterQueue(choice.target.client("sqs"), system.dead_letter_queue_url, system.requests_queue_url)
