"""The verbs of features that no caller sends: load fields of entities, and look at one of them."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from threefold_ops.cli.choice import Aws, Region, Stage, choose
from threefold_ops.cli.console import Json, app, err, out, print_json
from threefold_ops.cli.following import Board, uploading
from threefold_ops.entities import EntityDesk
from threefold_ops.errors import OperatorError

features = typer.Typer(no_args_is_help=True, help="Load what is known of entities, and look at one of them.")
app.add_typer(features, name="features")

Entity = Annotated[str, typer.Option(help="The field of a record that says whose it is, as in model.yaml.")]


@features.command()
def load(
    file: Path,
    entity: Entity,
    *,
    ttl_days: Annotated[float | None, typer.Option(min=0, help="How long they stay; default: for ever.")] = None,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Load a CSV of entities: a row each, in the place of what was loaded for it before."""
    if not file.is_file():
        raise OperatorError(f"{file}: want a file, got none")
    desk = _desk(aws=aws, stage=stage, region=region)
    with uploading(Board(err, quiet=as_json), file.stat().st_size) as moved:
        count = desk.load(file, entity, ttl_days=ttl_days, moved=moved)
    print_json({"entity": entity, "rows": count}) if as_json else out.print(f"{entity}: {count:,} rows loaded")


@features.command()
def get(
    value: Annotated[str, typer.Argument(help="Whose.")],
    entity: Entity,
    *,
    model: Annotated[str | None, typer.Option(help="Show what its windows hold, too.")] = None,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
) -> None:
    """Show what is known of one entity."""
    print_json(_desk(aws=aws, stage=stage, region=region).get(entity, value, model))


def _desk(*, aws: bool, stage: str, region: str | None) -> EntityDesk:
    choice = choose(aws=aws, stage=stage, region=region)
    return EntityDesk(choice.target.client("dynamodb"), choice.system().features_table)
