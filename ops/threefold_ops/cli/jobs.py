"""The verbs of the batch door: hand a file in, and see to its job."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.filesize import decimal

from threefold.jobs import JobState
from threefold.names import Door, stack_name
from threefold_ops.cli.choice import Aws, Region, Stage, choose
from threefold_ops.cli.console import Json, app, err, out, print_json
from threefold_ops.cli.following import Board, follow, uploading
from threefold_ops.cli.telling import ended, line, lines, public
from threefold_ops.errors import OperatorError
from threefold_ops.evaluation.costs import PRICES, job_cost, read_prices
from threefold_ops.job_desk import JobDesk
from threefold_ops.lost_uploads import LostUploads

if TYPE_CHECKING:
    from threefold.items import Values

Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or the 6 characters or more that it begins with.")]
Seconds = Annotated[float | None, typer.Option(min=0, help="How long to follow; default: until it ends.")]


@app.command()
def submit(
    file: Path,
    model: Annotated[str, typer.Option(help="The model that scores the file.")],
    *,
    wait: Annotated[bool, typer.Option(help="Follow the job until it ends.")] = True,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the joined results; .gz packs them.")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="One of , ; | or tab; default: found from the header.")] = None,
    version: Annotated[
        str | None, typer.Option(help="Score by this version or digest alone; default: as the release says.")
    ] = None,
    store: Annotated[
        bool, typer.Option(help="Put outcomes into the predictions table, not into the result file alone.")
    ] = True,
    note: Annotated[str | None, typer.Option(help="Shown with the job.")] = None,
    windows: Annotated[
        Literal["table", "file"], typer.Option(help="Whether the rows are a part of the stream, or all there is of it.")
    ] = "table",
    timeout_seconds: Seconds = None,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Upload a CSV to the batch door, and follow its job."""
    if not file.is_file():
        raise OperatorError(f"{file}: want a file, got none")
    if output is not None and not wait:
        raise OperatorError("--output: want it with --wait, got --no-wait; 'threefold results' gets them later")
    _check_folder(output)
    desk, where = _desk(aws=aws, stage=stage, region=region)
    named = {"delimiter": delimiter, "version": version, "note": note, "store": None if store else "false"}
    named["windows"] = None if windows == "table" else windows
    options = {name: value for name, value in named.items() if value is not None}
    with uploading(Board(err, quiet=as_json), file.stat().st_size) as moved:
        job = desk.inbox.upload(model, file, options, moved=moved)
    if not wait:
        print_json({"job": job}) if as_json else out.print(f"job {job}")
        return
    _follow(desk, job, where, timeout_seconds=timeout_seconds, as_json=as_json, output=output)


@app.command()
def jobs(
    model: Annotated[str | None, typer.Argument(help="Whose jobs; default: those of all models.")] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    desk, _ = _desk(aws=aws, stage=stage, region=region)
    found = desk.list(model, limit=limit)
    if as_json:
        print_json([public(job) for job in found])
        return
    width = max((len(job["model"]) for job in found), default=0)
    for job in found:
        out.print(line(job, width), markup=False)


@app.command(name="job")
def show(
    identifier: Id,
    *,
    prices: Annotated[Path, typer.Option(help="A price list, in the form of the one that is built in.")] = PRICES,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Say all that is known of a job."""
    price_list = read_prices(prices)
    choice = choose(aws=aws, stage=stage, region=region)
    system = choice.system()
    desk = JobDesk(system, choice.target, choice.stage)
    job = desk.find(identifier)
    counts, cost = desk.inbox.counts(job), job_cost(price_list, job)
    if as_json:
        found = public(job, counts)
        print_json(found if cost is None else {**found, "cost": {**asdict(cost), "currency": price_list.currency}})
        return
    where = f"{price_list.currency} at list prices of {price_list.region}"
    said = None if cost is None else f"about {cost.total:.4f} {where}"
    for name, text in lines(job, counts, said, system.results_bucket):
        out.print(f"{name:14}{text}", markup=False)


@app.command()
def cancel(
    identifier: Id,
    *,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Stop a job; what is done stays, and 'threefold resume' goes on from there."""
    desk, _ = _desk(aws=aws, stage=stage, region=region)
    _say(desk.cancel(identifier), as_json=as_json)


@app.command()
def resume(
    identifier: Id,
    *,
    wait: Annotated[bool, typer.Option(help="Follow the job until it ends.")] = False,
    timeout_seconds: Seconds = None,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Take up a job again that failed, came out incomplete or was cancelled: what is done is not done again."""
    desk, where = _desk(aws=aws, stage=stage, region=region)
    job = desk.resume(identifier)
    if wait:
        _follow(desk, job["job"], where, timeout_seconds=timeout_seconds, as_json=as_json, output=None)
    else:
        _say(job, as_json=as_json)


@app.command()
def results(
    identifier: Id,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the joined results; .gz packs them.")
    ] = None,
    rejects: Annotated[Path | None, typer.Option(help="Where to write the rows that could not be scored.")] = None,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
) -> None:
    """Download what came of a job."""
    if output is None and rejects is None:
        raise OperatorError("results: want --output, --rejects or both, got neither")
    for path in (output, rejects):
        _check_folder(path)
    desk, _ = _desk(aws=aws, stage=stage, region=region)
    job = desk.finished(identifier)
    for path, key in ((output, job["predictions_key"]), (rejects, job["rejects_key"])):
        if path is not None:
            desk.inbox.download(key, path)
            err.print(f"{path}: {decimal(path.stat().st_size)}", markup=False)


@app.command()
def lost(
    *,
    redrive: Annotated[bool, typer.Option("--redrive", help="Send each to the batch function once more.")] = False,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """List uploads that could not even be planned, and why."""
    choice = choose(aws=aws, stage=stage, region=region)
    queue = LostUploads(choice.target.client("sqs"), choice.system().lost_uploads_queue_url)
    functions = choice.target.client("lambda")
    try:
        found = queue.read()
        if as_json:
            print_json([{"at": one.at, "what": one.what, "reason": one.reason} for one in found])
        for one in found:
            sent = redrive and one.event is not None
            if sent:
                queue.redrive(one, functions, stack_name(choice.stage, Door.BATCH), "live")
            if not as_json:
                out.print(
                    f"{one.at}  {', '.join(one.what)}: {one.reason}{' (sent again)' if sent else ''}", markup=False
                )
    finally:
        queue.put_back()


def _desk(*, aws: bool, stage: str, region: str | None) -> tuple[JobDesk, str]:
    """The jobs of the chosen system, and the options by which another command finds it."""
    choice = choose(aws=aws, stage=stage, region=region)
    where = f" --aws --stage {choice.stage}" + (f" --region {region}" if region else "") if aws else ""
    return JobDesk(choice.system(), choice.target, choice.stage), where


def _follow(
    desk: JobDesk, job: str, where: str, *, timeout_seconds: float | None, as_json: bool, output: Path | None
) -> None:
    board = Board(err, quiet=as_json)
    item = follow(desk.inbox, job, board, timeout_seconds=timeout_seconds, console=err, where=where)
    if not as_json and (said := ended(item)):
        err.print(said)
    if output is not None and item.get("predictions_key"):
        desk.inbox.download(item["predictions_key"], output)
    _say(item, as_json=as_json)
    if item["state"] != JobState.COMPLETE:
        raise typer.Exit(1)


def _say(job: Values, *, as_json: bool) -> None:
    if as_json:
        print_json(public(job))
    else:
        reason = f": {job['reason']}" if job.get("reason") and job["reason"] != job["state"] else ""
        out.print(f"job {job['job']}: {job['state']}{reason}", markup=False)


def _check_folder(path: Path | None) -> None:
    if path is not None and not path.absolute().parent.is_dir():
        raise OperatorError(f"{path}: want a folder that is there, got none")
    if path is not None and path.is_dir():
        raise OperatorError(f"{path}: want a file's name, got a folder's")
