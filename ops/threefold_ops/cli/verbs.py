"""The verbs that run a system and use its doors."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold_ops import demo as demonstration
from threefold_ops import target as targets
from threefold_ops.authoring.folder import model_folders
from threefold_ops.cli.choice import Aws, Profile, Region, Stage, choose
from threefold_ops.cli.console import Json, app, err, out, print_json
from threefold_ops.cli.reading import pair, read_json, read_messages
from threefold_ops.doors import Https, Queues
from threefold_ops.errors import OperatorError
from threefold_ops.local import emulator
from threefold_ops.paths import EMULATOR_PYTHON, EVENTS, MODELS, STATE
from threefold_ops.registry.publish import publish
from threefold_ops.registry.releases import operator_name
from threefold_ops.system import System, deploy_system, find_model_bucket, open_registry, plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Port = Annotated[int, typer.Option(min=0, max=65535, help="The loopback port; 0 takes a free one.")]


@app.command()
def up(
    *,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it running; stop it with 'threefold down'.")] = False,
    port: Port = emulator.DEFAULT_PORT,
) -> None:
    """Run the whole system on this machine, until Ctrl-C."""
    started = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell's background jobs are born with SIGINT ignored; whatever asks this to end, all it started must end.
        signal.signal(number, signal.default_int_handler)
    if detach:
        emulator.start(STATE, EMULATOR_PYTHON, port=port)
        try:
            system = _deploy_local()
        except BaseException:
            emulator.stop(STATE)
            raise
        _print_calls(system)
        out.print(f"up in {time.monotonic() - started:.0f} s; stop it with 'threefold down'")
        return
    with emulator.running(STATE, EMULATOR_PYTHON, port=port):
        _print_calls(_deploy_local())
        try:
            out.print(f"up in {time.monotonic() - started:.0f} s; Ctrl-C stops it")
            while emulator.find(STATE) is not None:
                time.sleep(0.5)
        except KeyboardInterrupt:
            return
        message = f"the embedded AWS ended by itself; its log is {STATE.name}/emulator.log"
        raise OperatorError(message)


@app.command()
def down() -> None:
    """Stop the local system."""
    if not emulator.stop(STATE):
        raise OperatorError("no local system is running")
    out.print("stopped")


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="Print this value alone, e.g. api_url.")] = None,
    *,
    as_json: Json = False,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
) -> None:
    """Say where the doors are, and which models serve."""
    system = choose(aws=aws, stage=stage, region=region).system()
    if name is not None:
        if name not in system.to_json():
            raise OperatorError(f"status: want one of {list(system.to_json())}, got {name!r}")
        sys.stdout.write(f"{system.to_json()[name]}\n")
        return
    if as_json:
        print_json(system.to_json())
        return
    # Whole lines, however narrow the terminal: addresses are there to be copied.
    for field, value in system.to_json().items():
        if field != "models":
            out.print(f"{field:24}{value or ''}")
    for model in system.models:
        what = model.get("error") or f"{model['version']} ({model['digest'][:12]})"
        out.print(f"{'model':24}{model['name']} {what}")


@app.command()
def demo(
    *,
    port: Port = 0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Tell each step of the deployment.")] = False,
) -> None:
    """Send records through all three doors of a system of its own, and compare every answer."""
    with tempfile.TemporaryDirectory(prefix="threefold-demo-") as state, _steps(verbose=verbose) as say:
        say("starting the embedded AWS")
        with emulator.running(Path(state), EMULATOR_PYTHON, port=port) as found:
            target = targets.emulator(found.endpoint_url)
            system = deploy_system(target, {}, progress=say)
            records = demonstration.run(system, target, model_folders(MODELS), out.print)
    out.print(f"demo: {records} records, 3 doors, all answers agree")


@app.command(name="publish")
def publish_(
    folders: Annotated[list[Path] | None, typer.Argument(help="Model folders; default: all under models/.")] = None,
    *,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Check model folders, and put their packages into the registry."""
    choice = choose(aws=aws, stage=stage, region=region)
    with tempfile.TemporaryDirectory(prefix="threefold-") as cache:
        registry = open_registry(choice.target, find_model_bucket(choice.target, choice.stage), Path(cache))
        by = operator_name(choice.target)
        done = []
        try:
            for folder in folders or model_folders(MODELS):
                one = publish(registry, folder, by=by)
                done.append(one)
                if not as_json:
                    state = f"{'new' if one.new else 'known'}, {one.state}"
                    out.print(f"{one.name} {one.version} ({one.digest[:12]}): {state}")
        finally:  # What was published stands, whatever a later folder is refused for.
            if as_json:
                print_json([asdict(one) for one in done])


@app.command()
def predict(
    model: str,
    records: Annotated[
        str, typer.Argument(help="JSON records (a list or one object), @file.json, or - for stdin.")
    ] = "-",
    *,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
) -> None:
    """Ask the HTTPS door."""
    choice = choose(aws=aws, stage=stage, region=region)
    found = read_json(records)
    answer = Https(choice.system(), choice.target).post(
        f"/models/{model}/predictions", {"records": found if isinstance(found, list) else [found]}
    )
    print_json(answer.json())
    if answer.status != 200:  # noqa: PLR2004 - HTTP
        raise typer.Exit(1)


@app.command()
def send(
    model: str,
    file: Annotated[
        Path,
        typer.Argument(help="Records: a CSV with a header, or JSON lines (records, or whole messages); - for stdin."),
    ],
    *,
    timeout_seconds: Annotated[float, typer.Option(help="How long to wait for the answers.")] = 60,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
) -> None:
    """Push records to the requests queue, and print the answers as they come."""
    choice = choose(aws=aws, stage=stage, region=region)
    queues = Queues(choice.system(), choice.target)
    answered = False
    for outcome in queues.receive(queues.send(read_messages(model, file)), timeout_seconds=timeout_seconds):
        print_json(outcome)
        answered |= "error" not in outcome
    if not answered:
        raise typer.Exit(1)


@app.command()
def invoke(
    case: Annotated[str, typer.Argument(help="<function>/<case>, a file under events/ without .json.")],
    *,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
) -> None:
    """Call a function with an event out of events/."""
    choice = choose(aws=aws, stage=stage, region=region)
    function, _, _ = case.partition("/")
    path = EVENTS / f"{case}.json"
    if not path.is_file():
        known = sorted(str(found.relative_to(EVENTS).with_suffix("")) for found in EVENTS.glob("*/*.json"))
        raise OperatorError(f"{case}: want one of {[name for name in known if not name.endswith('.expected')]}")
    response = choice.target.client("lambda").invoke(
        FunctionName=f"threefold-{choice.stage}-{function}", Qualifier="live", Payload=path.read_bytes()
    )
    print_json(json.loads(response["Payload"].read()))
    if response.get("FunctionError"):
        raise typer.Exit(1)


@app.command()
def deploy(
    *,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Only say what would be deployed; needs no account.")
    ] = False,
    context: Annotated[
        list[str] | None, typer.Option("--context", "-c", help="key=value; docs/configuration.md")
    ] = None,
    region: Region = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Deploy to your AWS account; the same steps as 'threefold up', with your endpoint and credentials."""
    declared = dict(pair(text) for text in context or [])
    if plan_only:
        with _steps(verbose=False) as say:
            resources = plan(declared, say)
        if as_json:
            print_json([{"stack": stack, "type": kind, "id": identifier} for stack, kind, identifier in resources])
            return
        for stack, kind, identifier in resources:
            out.print(f"{stack:34} {kind:42} {identifier}")
        out.print(f"{len(resources)} resources")
        return
    with _steps(verbose=True) as say:
        system = deploy_system(targets.aws(region, profile), declared, progress=say)
    print_json(system.to_json()) if as_json else _print_calls(system)


def _deploy_local() -> System:
    found = emulator.find(STATE)
    assert found is not None
    with _steps(verbose=False) as say:
        return deploy_system(targets.emulator(found.endpoint_url), {}, progress=say)


@contextmanager
def _steps(*, verbose: bool) -> Iterator[Callable[[str], None]]:
    """A line that says what goes on; in a terminal it is replaced, elsewhere each is kept."""
    if verbose or not err.is_terminal:
        yield lambda text: err.print(f"… {text}")
        return
    with err.status("…") as line:
        yield line.update


def _print_calls(system: System) -> None:
    """How to call each door, ready to be pasted."""
    threefold = "threefold" if shutil.which("threefold") else ".venv/bin/threefold"
    there, aws = "", "aws"
    if system.endpoint_url is None:
        there = " --aws"
    else:
        aws = f"AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test aws --region {system.region}"
        aws += f" --endpoint-url '{system.endpoint_url}'"
    model = "diabetes" if any(found["name"] == "diabetes" for found in system.models) else "<model>"
    record = _example_record(model)
    message = json.dumps({"model": model, "record": record})
    body = json.dumps({"records": [record]})
    table = f"models/{model}/held-out.csv"
    out.print("HTTPS, a prediction now:")
    if system.endpoint_url is not None:  # On AWS a call is signed, which curl does not do by itself.
        url = f"{system.api_url}/models/{model}/predictions"
        out.print(f"  curl -s -H 'content-type: application/json' -d '{body}' '{url}'")
    out.print(f"  {threefold} predict{there} {model} '{json.dumps(record)}'")
    out.print("CSV, a file of predictions:")
    out.print(f"  {threefold} submit{there} '{table}' --model {model} --output predictions.csv")
    out.print(f"  {aws} s3 cp '{table}' 's3://{system.inbox_bucket}/{model}/held-out.csv'")
    out.print("SQS, a stream of predictions:")
    out.print(f"  {threefold} send{there} {model} '{table}'")
    out.print(f"  {aws} sqs send-message --queue-url '{system.requests_queue_url}' --message-body '{message}'")
    out.print(f"  {aws} sqs receive-message --queue-url '{system.predictions_queue_url}' --wait-time-seconds 10")


def _example_record(model: str) -> dict[str, Any]:
    path = MODELS / model / "examples.jsonl"
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8").splitlines()[0])["record"]
    return found
