"""The model layer of a deployed system: by exact object version, and needed."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from threefold_ops.layers import read_layer_digest

if TYPE_CHECKING:
    from tests.system.conftest import Local

pytestmark = pytest.mark.system

LIVE = json.dumps({"routeKey": "GET /v2/health/live"}).encode()


def _deployed_object(local: Local) -> tuple[str, str]:
    """Key and version of the model layer's object, as the predict stack's template names it."""
    template = local.target.client("cloudformation").get_template(StackName="threefold-dev-predict")["TemplateBody"]
    document: dict[str, Any] = json.loads(template) if isinstance(template, str) else template
    contents = [
        resource["Properties"]["Content"]
        for resource in document["Resources"].values()
        if resource["Type"] == "AWS::Lambda::LayerVersion" and "S3ObjectVersion" in resource["Properties"]["Content"]
    ]
    assert len(contents) == 1
    return contents[0]["S3Key"], contents[0]["S3ObjectVersion"]


def test_the_layers_digest_is_the_one_inside_the_object_version_that_the_stack_names(local: Local) -> None:
    key, version = _deployed_object(local)
    s3 = local.target.client("s3")
    content = s3.get_object(Bucket=local.system.model_bucket, Key=key, VersionId=version)["Body"].read()
    with tempfile.NamedTemporaryFile(suffix=".zip") as file:
        file.write(content)
        file.flush()
        assert key == f"layers/model/{read_layer_digest(Path(file.name))}.zip"


def test_overwriting_the_layers_key_changes_nothing_that_is_deployed(local: Local) -> None:
    key, version = _deployed_object(local)
    s3 = local.target.client("s3")
    broken = io.BytesIO()
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("python/threefold/__init__.py", "raise RuntimeError('overwritten')")
    overwritten = s3.put_object(Bucket=local.system.model_bucket, Key=key, Body=broken.getvalue())["VersionId"]
    try:
        assert overwritten != version
        # A configuration change ends the warm environments: what answers next has unpacked its layers anew.
        function = "threefold-dev-predict"
        lambda_ = local.target.client("lambda")
        layers = lambda_.get_function_configuration(FunctionName=function, Qualifier="live")["Layers"]
        for layer in layers:
            found = lambda_.get_layer_version_by_arn(Arn=layer["Arn"])
            assert found["Content"]["CodeSize"] != len(broken.getvalue())
        response = lambda_.invoke(FunctionName=function, Qualifier="live", Payload=LIVE)
        assert json.loads(response["Payload"].read())["statusCode"] == 200
    finally:
        s3.delete_object(Bucket=local.system.model_bucket, Key=key, VersionId=overwritten)


def test_a_function_without_the_model_layer_does_not_even_start(local: Local) -> None:
    lambda_ = local.target.client("lambda")
    found = lambda_.get_function(FunctionName="threefold-dev-predict")["Configuration"]
    runtime = [layer["Arn"] for layer in found["Layers"] if "model" not in layer["Arn"].split(":")[6]]
    assert len(runtime) == len(found["Layers"]) - 1
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("predict.py", (Path(__file__).parents[2] / "functions" / "predict.py").read_text())
    for name, layers in (("without", runtime), ("with", [layer["Arn"] for layer in found["Layers"]])):
        lambda_.create_function(
            FunctionName=f"threefold-test-{name}",
            Runtime=found["Runtime"],
            Role=found["Role"],
            Handler="predict.handler",
            Code={"ZipFile": code.getvalue()},
            Layers=layers,
            Timeout=30,
            MemorySize=1769,
            Environment={"Variables": found["Environment"]["Variables"]},
        )
    try:
        without = lambda_.invoke(FunctionName="threefold-test-without", Payload=LIVE)
        assert without["FunctionError"] == "Unhandled"
        error = json.loads(without["Payload"].read())
        assert error["errorType"] == "Runtime.ImportModuleError"
        assert "threefold" in error["errorMessage"]
        with_both = lambda_.invoke(FunctionName="threefold-test-with", Payload=LIVE)
        assert json.loads(with_both["Payload"].read())["statusCode"] == 200
    finally:
        for name in ("without", "with"):
            lambda_.delete_function(FunctionName=f"threefold-test-{name}")
