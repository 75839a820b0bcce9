"""Deploys a synthesized cloud assembly through boto3: to AWS, or to the embedded AWS, without the CDK CLI."""

from __future__ import annotations

import re
import stat
import tempfile
import time
import zipfile
from typing import IO, TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from threefold_ops import assembly as assemblies
from threefold_ops.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from threefold_ops.assembly import Asset, Stack
    from threefold_ops.target import Target

Outputs = dict[str, dict[str, str]]

# https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
TEMPLATE_BODY_LIMIT_BYTES: Final = 51_200
_CAPABILITIES: Final = ["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"]
_BOOTSTRAP_VERSION: Final = "30"
_ZIP_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_LOCAL_POLL_SECONDS: Final = 0.2
_AWS_POLL_SECONDS: Final = 3.0
# What a stack that was never whole is in: it can only be deleted.
_BROKEN: Final = {"ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED", "REVIEW_IN_PROGRESS"}
_TABLES: Final = ("AWS::DynamoDB::Table", "AWS::DynamoDB::GlobalTable")


def deploy(
    assembly: Path,
    target: Target,
    *,
    stacks: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Outputs:
    """Publish the assets of an assembly and create or update its stacks, in order.

    Args:
        assembly: the folder that the synthesis wrote.
        target: where to.
        stacks: names of the stacks to deploy, all when None.
        progress: told what happens, a line at a time.

    Returns:
        The outputs by stack name and output key.

    Raises:
        OperatorError: a stack or an asset failed; the message holds the failed resources' reasons.
    """
    chosen = _choose(assemblies.read(assembly), stacks)
    outputs: Outputs = {}
    if target.emulated:
        _bootstrap_emulator(chosen, target)
    for stack in chosen:
        for asset in stack.assets:
            publish(asset, target, progress=progress)
        outputs[stack.name] = _deploy_stack(stack, target, progress)
        if target.emulated:
            _set_time_to_live(stack, target)
    return outputs


def describe(target: Target, stacks: Iterable[str]) -> Outputs:
    """Read the outputs of deployed stacks; a stack that does not exist is left out."""
    cloudformation = target.client("cloudformation")
    found: Outputs = {}
    for name in stacks:
        if (state := _state(cloudformation, name)) is not None:
            found[name] = _outputs(state)
    return found


def destroy(
    assembly: Path,
    target: Target,
    *,
    stacks: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Delete the stacks of an assembly, each before those it depends on; what retains its data keeps it.

    Raises:
        OperatorError: a stack could not be deleted.
    """
    cloudformation = target.client("cloudformation")
    for stack in reversed(_choose(assemblies.read(assembly), stacks)):
        if _state(cloudformation, stack.name) is not None:
            progress(f"{stack.name}: deleting")
            _delete(cloudformation, stack.name, target, progress)


def publish(asset: Asset, target: Target, *, progress: Callable[[str], None] = lambda _: None) -> bool:
    """Upload an asset unless its key, which changes with its content, is there; return whether it was uploaded."""
    s3 = target.client("s3")
    bucket, key = target.resolve(asset.bucket), target.resolve(asset.key)
    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        # HEAD has no body: the status is the code.
        if error.response["Error"]["Code"] not in {"404", "NoSuchKey"}:
            message = f"asset {asset.name}: want access to the bucket {bucket}, got {_reason(error)}"
            raise OperatorError(message) from error
    else:
        return False
    progress(f"publishing {asset.name}")
    with _content(asset, compress=not target.emulated) as content:
        try:
            s3.upload_fileobj(content, bucket, key)
        except ClientError as error:
            message = f"asset {asset.name}: want it in the bucket {bucket}, got {_reason(error)}"
            raise OperatorError(message) from error
    return True


def write_zip(folder: Path, into: IO[bytes], *, compress: bool = True) -> None:
    """Zip a folder so that the same files always give the same bytes.

    Bytecode goes along: what the synthesis did not want, it left out of its asset.

    Args:
        folder: its files, and those of its subfolders, go into the zip.
        into: a file open for writing.
        compress: False is faster, for a zip that does not travel.
    """
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    with zipfile.ZipFile(into, "w", method) as bundle:
        for name in sorted(names):
            info = zipfile.ZipInfo(name, _ZIP_EPOCH)
            info.compress_type = method
            # Only whether it can be run: the rest of the mode is the umask of who checked it out.
            runnable = names[name].stat().st_mode & stat.S_IXUSR
            info.external_attr = (stat.S_IFREG | (0o755 if runnable else 0o644)) << 16
            info.create_system = 3
            bundle.writestr(info, names[name].read_bytes())


def _choose(stacks: list[Stack], names: Sequence[str] | None) -> list[Stack]:
    if names is None:
        return stacks
    known = {stack.name for stack in stacks}
    if missing := [name for name in names if name not in known]:
        message = f"stack: want one of {', '.join(sorted(known))}, got {', '.join(missing)}"
        raise OperatorError(message)
    return [stack for stack in stacks if stack.name in names]


def _content(asset: Asset, *, compress: bool) -> IO[bytes]:
    if not asset.source.exists():
        message = f"asset {asset.name}: want it at {asset.source}, got nothing there"
        raise OperatorError(message)
    if asset.packaging != "zip":
        return asset.source.open("rb")
    content: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- the caller closes it
    write_zip(asset.source, content, compress=compress)
    content.seek(0)
    return content


def _bootstrap_emulator(stacks: Iterable[Stack], target: Target) -> None:
    """Make what `cdk bootstrap` makes in an account: the assets' buckets, and its version's parameter."""
    s3, ssm = target.client("s3"), target.client("ssm")
    for bucket in sorted({target.resolve(asset.bucket) for stack in stacks for asset in stack.assets}):
        s3.create_bucket(Bucket=bucket)
    for stack in stacks:
        for parameter in stack.template.get("Parameters", {}).values():
            if parameter["Type"] == "AWS::SSM::Parameter::Value<String>":
                name = str(parameter["Default"])
                if re.fullmatch(r"/cdk-bootstrap/\w+/version", name):
                    ssm.put_parameter(Name=name, Value=_BOOTSTRAP_VERSION, Type="String", Overwrite=True)


def _deploy_stack(stack: Stack, target: Target, progress: Callable[[str], None]) -> dict[str, str]:
    cloudformation = target.client("cloudformation")
    state = _state(cloudformation, stack.name)
    if state is not None and state["StackStatus"] not in _BROKEN:
        state = _wait(cloudformation, state["StackId"], target, None, progress)
    if state is not None and state["StackStatus"] in _BROKEN:
        progress(f"{stack.name}: deleting what an earlier attempt left")
        _delete(cloudformation, stack.name, target, progress)
        state = None
    arguments: dict[str, Any] = {
        "StackName": stack.name,
        "Capabilities": _CAPABILITIES,
        "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in stack.parameters.items()],
        "Tags": [{"Key": key, "Value": value} for key, value in stack.tags.items()],
        **_template(stack, target),
    }
    if state is not None and state.get("EnableTerminationProtection", False) != stack.protected:
        cloudformation.update_termination_protection(StackName=stack.name, EnableTerminationProtection=stack.protected)
    progress(f"{stack.name}: {'creating' if state is None else 'updating'}")
    seen = _latest_event(cloudformation, state)
    try:
        if state is None:
            identity = cloudformation.create_stack(**arguments, EnableTerminationProtection=stack.protected)["StackId"]
        else:
            identity = cloudformation.update_stack(**arguments)["StackId"]
    except ClientError as error:
        # CloudFormation has no code of its own for this answer: the text is all there is.
        if state is not None and "No updates are to be performed" in error.response["Error"]["Message"]:
            progress(f"{stack.name}: unchanged")
            return _outputs(state)
        message = f"stack {stack.name}: {_reason(error)}"
        raise OperatorError(message) from error
    final = _wait(cloudformation, identity, target, seen, progress)
    if final["StackStatus"] not in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}:
        message = f"stack {stack.name}: {final['StackStatus']}\n{_failures(cloudformation, identity, seen, final)}"
        raise OperatorError(message)
    progress(f"{stack.name}: done")
    return _outputs(final)


def _template(stack: Stack, target: Target) -> dict[str, str]:
    body = stack.template_file.read_text()
    if len(body.encode()) <= TEMPLATE_BODY_LIMIT_BYTES:
        return {"TemplateBody": body}
    if not stack.template_url.startswith("s3://"):
        message = (
            f"stack {stack.name}: want its template among its assets, as it is over {TEMPLATE_BODY_LIMIT_BYTES} bytes"
        )
        raise OperatorError(message)
    bucket, _, key = target.resolve(stack.template_url).removeprefix("s3://").partition("/")
    base = target.client("s3").meta.endpoint_url
    return {"TemplateURL": f"{base}/{bucket}/{key}"}


def _delete(cloudformation: Any, name: str, target: Target, progress: Callable[[str], None]) -> None:  # noqa: ANN401
    state = _state(cloudformation, name)
    if state is None:
        return
    seen = _latest_event(cloudformation, state)
    cloudformation.delete_stack(StackName=state["StackId"])
    final = _wait(cloudformation, state["StackId"], target, seen, progress)
    if final["StackStatus"] != "DELETE_COMPLETE":
        message = f"stack {name}: {final['StackStatus']}\n{_failures(cloudformation, state['StackId'], seen, final)}"
        raise OperatorError(message)


def _state(cloudformation: Any, name: str) -> dict[str, Any] | None:  # noqa: ANN401
    try:
        found: dict[str, Any] = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    except ClientError as error:
        # ValidationError is what CloudFormation says of a name that does not exist.
        if error.response["Error"]["Code"] == "ValidationError":
            return None
        message = f"stack {name}: {_reason(error)}"
        raise OperatorError(message) from error
    return None if found["StackStatus"] == "DELETE_COMPLETE" else found


def _wait(
    cloudformation: Any,  # noqa: ANN401
    identity: str,
    target: Target,
    seen: str | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Wait until nothing is in progress, telling of the resources that are done; CloudFormation bounds the time."""
    while True:
        try:
            state: dict[str, Any] = cloudformation.describe_stacks(StackName=identity)["Stacks"][0]
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationError":
                raise OperatorError(_reason(error)) from error
            # ministack forgets a deleted stack, id and all.
            return {"StackStatus": "DELETE_COMPLETE", "StackId": identity}
        if seen is not None or "IN_PROGRESS" in state["StackStatus"]:
            for event in _events(cloudformation, identity, seen):
                seen = event["EventId"]
                if event["ResourceStatus"].endswith(("_COMPLETE", "_FAILED")):
                    progress(f"{state['StackName']}: {event['LogicalResourceId']} {event['ResourceStatus']}")
        if not state["StackStatus"].endswith("IN_PROGRESS"):
            return state
        time.sleep(_LOCAL_POLL_SECONDS if target.emulated else _AWS_POLL_SECONDS)


def _events(cloudformation: Any, identity: str, after: str | None) -> list[dict[str, Any]]:  # noqa: ANN401
    """Read the events after the one named, oldest first."""
    found: list[dict[str, Any]] = []
    try:
        for page in cloudformation.get_paginator("describe_stack_events").paginate(StackName=identity):
            for event in page["StackEvents"]:
                if event["EventId"] == after:
                    return found[::-1]
                found.append(event)
    except ClientError:
        # Events are for people; the stack's own status decides.
        return []
    return found[::-1]


def _latest_event(cloudformation: Any, state: dict[str, Any] | None) -> str | None:  # noqa: ANN401
    events = _events(cloudformation, state["StackId"], None) if state else []
    return events[-1]["EventId"] if events else None


def _failures(cloudformation: Any, identity: str, after: str | None, final: dict[str, Any]) -> str:  # noqa: ANN401
    lines = [
        f"  {event['LogicalResourceId']} ({event.get('ResourceType', '')}): {event.get('ResourceStatusReason', '')}"
        for event in _events(cloudformation, identity, after)
        # What was only cancelled because of another failure explains nothing.
        if event["ResourceStatus"].endswith("_FAILED") and "cancelled" not in event.get("ResourceStatusReason", "")
    ]
    return "\n".join(lines) or f"  {final.get('StackStatusReason', 'no reason given')}"


def _outputs(state: dict[str, Any]) -> dict[str, str]:
    return {output["OutputKey"]: output["OutputValue"] for output in state.get("Outputs", [])}


def _set_time_to_live(stack: Stack, target: Target) -> None:
    """Set the tables' TTL, which the emulator's CloudFormation drops."""
    cloudformation, dynamodb = target.client("cloudformation"), target.client("dynamodb")
    for kind in _TABLES:
        for logical_id, resource in stack.resources(kind).items():
            wanted = resource.get("Properties", {}).get("TimeToLiveSpecification")
            if not wanted or not wanted.get("Enabled"):
                continue
            detail = cloudformation.describe_stack_resource(StackName=stack.name, LogicalResourceId=logical_id)
            table = detail["StackResourceDetail"]["PhysicalResourceId"]
            current = dynamodb.describe_time_to_live(TableName=table)["TimeToLiveDescription"]
            if current["TimeToLiveStatus"] not in {"ENABLED", "ENABLING"}:
                dynamodb.update_time_to_live(
                    TableName=table,
                    TimeToLiveSpecification={"Enabled": True, "AttributeName": wanted["AttributeName"]},
                )


def _reason(error: ClientError) -> str:
    detail = error.response["Error"]
    return f"{detail.get('Code')}: {detail.get('Message')}"
