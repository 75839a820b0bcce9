"""A whole Threefold: deployed in one order to an account or to the embedded AWS, and found again by its outputs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store

from threefold.errors import ThreefoldError
from threefold.names import STACKS, Context, Output, stack_name
from threefold.registry import Registry
from threefold_ops import assembly as assemblies
from threefold_ops import deploy as deployment
from threefold_ops.errors import OperatorError
from threefold_ops.layers import (
    CODE,
    HOST,
    ModelLayer,
    build_model_layer,
    build_runtime_layer,
    lambda_runtime,
    read_layer_digest,
    zip_runtime_layer,
)
from threefold_ops.paths import BUILD, MODELS, ROOT
from threefold_ops.registry.publish import champions, publish_all
from threefold_ops.registry.releases import operator_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from threefold_ops.deploy import Outputs
    from threefold_ops.target import Target

Progress = "Callable[[str], None]"
_STOP_SECONDS: Final = 10
_UPLOAD: Final = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class System:
    """Where the doors of a deployed Threefold are, as its stacks' outputs say."""

    api_url: str
    endpoint_url: str | None
    region: str
    model_bucket: str
    inbox_bucket: str
    results_bucket: str
    requests_queue_url: str
    predictions_queue_url: str
    dead_letter_queue_url: str
    lost_uploads_queue_url: str
    state_machine_arn: str
    predictions_table: str
    jobs_table: str
    features_table: str = ""
    models: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """What `threefold status --json` prints."""
        return asdict(self)


def deploy_system(
    target: Target,
    context: Mapping[str, str],
    *,
    models: Path = MODELS,
    code: Path = CODE,
    progress: Callable[[str], None] = lambda _: None,
) -> System:
    """Deploy everything: the store, the models, the model layer, the doors.

    Args:
        target: an account, or the embedded AWS.
        context: the CDK context that the operator declared.
        models: the folder of model folders to publish.
        code: the `threefold` package that the model layer carries.
        progress: told what happens, a line at a time.

    Raises:
        OperatorError: what failed, and why.
    """
    context = dict(context)
    if target.emulated:
        context = {Context.AUTH: "none", **context}
    elif context.get(Context.AUTH) == "none":
        message = "context 'auth': want iam or jwt on AWS, got none; only the embedded AWS may be open to anybody"
        raise OperatorError(message)
    stage = context.setdefault(Context.STAGE, "dev")
    architecture = context.get("architecture", "x86_64")
    runtime = HOST if target.emulated else lambda_runtime(architecture)
    with Synthesizer() as synthesizer, tempfile.TemporaryDirectory(prefix="threefold-assembly-") as folder:
        context["runtimeLayer"] = str(zip_runtime_layer(build_runtime_layer(BUILD, runtime, progress)))
        store_assembly = synthesizer.synthesize(context, Path(folder) / "store")
        store = deployment.deploy(store_assembly, target, progress=progress)
        bucket = store[stack_name(stage, "store")][Output.MODEL_BUCKET]
        registry = open_registry(target, bucket, Path(folder) / "packages")
        publish_all(registry, models, operator_name(target), progress)
        layer = build_model_layer(BUILD, runtime, champions(registry, progress), code=code)
        context[Context.MODEL_LAYER_KEY] = layer.key
        context[Context.MODEL_LAYER_VERSION] = upload_model_layer(target, bucket, layer, progress)
        assembly = synthesizer.synthesize(context, Path(folder) / "all")
        outputs = deployment.deploy(assembly, target, progress=progress)
    return _system(target, stage, outputs)


def find_system(target: Target, stage: str = "dev") -> System:
    """A deployed system, by the outputs of its stacks.

    Raises:
        OperatorError: it is not deployed, or not whole.
    """
    return _system(target, stage, deployment.describe(target, [stack_name(stage, stack) for stack in STACKS]))


def find_model_bucket(target: Target, stage: str = "dev") -> str:
    """The registry's bucket, by the store's output.

    Raises:
        OperatorError: the store is not deployed.
    """
    store = stack_name(stage, "store")
    try:
        return deployment.describe(target, [store])[store][Output.MODEL_BUCKET]
    except KeyError as error:
        message = f"stage '{stage}': want its store, got none; deploy it with 'threefold deploy'"
        raise OperatorError(message) from error


def plan(context: Mapping[str, str], progress: Callable[[str], None]) -> list[tuple[str, str, str]]:
    """What a deploy to AWS would deploy, without credentials: (stack, resource type, logical id)."""
    with Synthesizer() as synthesizer, tempfile.TemporaryDirectory(prefix="threefold-assembly-") as folder:
        runtime = lambda_runtime(context.get("architecture", "x86_64"))
        named = {
            "runtimeLayer": str(zip_runtime_layer(build_runtime_layer(BUILD, runtime, progress))),
            Context.MODEL_LAYER_KEY: "layers/model/planned.zip",
            Context.MODEL_LAYER_VERSION: "planned",
        }
        return assemblies.plan(synthesizer.synthesize({**context, **named}, Path(folder) / "all"))


def open_registry(target: Target, bucket: str, cache: Path) -> Registry:
    """The registry in a bucket, through the target's own credentials."""
    if target.session.get_credentials() is None:
        message = "AWS: want credentials, got none: configure a profile or set AWS_ACCESS_KEY_ID"
        raise OperatorError(message)
    optional: Any = {} if target.endpoint_url is None else {"endpoint": target.endpoint_url}
    store = S3Store(
        bucket,
        region=target.region,
        # The session's own, wherever they come from: keys of a profile must not meet a token of the environment.
        credential_provider=Boto3CredentialProvider(target.session),
        # A model of any size goes up in one piece, and over any line.
        client_options={"allow_http": target.emulated, "connect_timeout": timedelta(seconds=10), "timeout": _UPLOAD},
        **optional,
    )
    return Registry(store, cache=cache, baked=cache / "none", refresh_seconds=0)


def upload_model_layer(target: Target, bucket: str, layer: ModelLayer, progress: Callable[[str], None]) -> str:
    """Put the model layer where it is not yet.

    Returns:
        The object version that holds exactly this layer.
    """
    s3 = target.client("s3")
    try:
        head = s3.head_object(Bucket=bucket, Key=layer.key)
        with tempfile.TemporaryDirectory(prefix="threefold-layer-") as folder:
            found = Path(folder) / "layer.zip"
            s3.download_file(bucket, layer.key, str(found), ExtraArgs={"VersionId": head["VersionId"]})
            # Somebody may have overwritten the key: what is inside counts, not what it is called.
            if read_layer_digest(found) == layer.digest:
                return str(head["VersionId"])
    except ClientError as error:
        if error.response["Error"]["Code"] not in {"404", "NoSuchKey", "NotFound"}:
            raise
    progress(f"uploading the model layer {layer.digest[:12]}")
    done = s3.put_object(Bucket=bucket, Key=layer.key, Body=layer.path.read_bytes())
    return str(done["VersionId"])


class Synthesizer:
    """Runs the CDK app in a process of its own, which imports the CDK once and writes as many assemblies as asked."""

    def __init__(self) -> None:
        """Start the process; what it imports it imports while others work.

        Raises:
            OperatorError: there is no Node, which the CDK runs on.
        """
        if shutil.which("node") is None:
            raise OperatorError("want Node 20 or newer on the PATH, got none: the CDK's templates are written by it")
        # Node 20 works; the CDK's banner about its end of life is not the operator's to act on.
        environment = {**os.environ, "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "18,20"}
        environment["PYTHONPATH"] = str(ROOT)
        environment.pop("CDK_CONTEXT_JSON", None)
        # The CDK unpacks itself into the temporary folder.
        self._folder = tempfile.TemporaryDirectory(prefix="threefold-synthesis-", ignore_cleanup_errors=True)
        environment["TMPDIR"] = self._folder.name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infra.app", "--serve"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Self:
        """The synthesizer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        # The end of its input ends it, and it takes the CDK's own process along; only then can the folder go.
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        self._folder.cleanup()

    def synthesize(self, context: Mapping[str, str], folder: Path) -> Path:
        """Write the assembly of a context into a folder.

        Raises:
            OperatorError: the app refuses the context, or fails.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"context": dict(context), "outdir": str(folder)}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer.strip() != "done":
            self._process.wait()
            self._errors.seek(0)
            message = f"synthesis failed:\n{answer}{self._errors.read().strip()[-3000:]}"
            raise OperatorError(message)
        return folder


def _system(target: Target, stage: str, outputs: Outputs) -> System:
    flat = {key: value for stack in outputs.values() for key, value in stack.items()}
    try:
        api_url = flat[Output.API_URL].rstrip("/")
        bucket = flat[Output.MODEL_BUCKET]
        addresses = {
            "inbox_bucket": flat[Output.INBOX_BUCKET],
            "results_bucket": flat[Output.RESULTS_BUCKET],
            "requests_queue_url": flat[Output.REQUESTS_QUEUE_URL],
            "predictions_queue_url": flat[Output.PREDICTIONS_QUEUE_URL],
            "dead_letter_queue_url": flat[Output.DEAD_LETTER_QUEUE_URL],
            "lost_uploads_queue_url": flat[Output.LOST_UPLOADS_QUEUE_URL],
            "state_machine_arn": flat[Output.STATE_MACHINE_ARN],
            "predictions_table": flat[Output.PREDICTIONS_TABLE],
            "jobs_table": flat[Output.JOBS_TABLE],
            # A store that an earlier release deployed has none.
            "features_table": flat.get(Output.FEATURES_TABLE, ""),
        }
    except KeyError as error:
        message = f"stage '{stage}': want a whole system, got no output {error}; deploy it with 'threefold deploy'"
        raise OperatorError(message) from error
    if target.endpoint_url is not None:
        # The embedded AWS has one port; there the API's own host name is a path.
        identifier = (urlsplit(api_url).hostname or "").partition(".")[0]
        api_url = f"{target.endpoint_url}/_aws/execute-api/{identifier}/$default"
    models = []
    with tempfile.TemporaryDirectory(prefix="threefold-") as cache:
        registry = open_registry(target, bucket, Path(cache))
        try:
            names = registry.models()
        except ThreefoldError as error:
            raise OperatorError(str(error)) from error
        for name in names:
            try:
                champion = registry.release(name).release.champion
                models.append({"name": name, "version": champion.version, "digest": champion.digest})
            except ThreefoldError as error:  # the others are served, and looked after, all the same
                models.append({"name": name, "error": str(error)})
    return System(api_url, target.endpoint_url, target.region, bucket, **addresses, models=models)
