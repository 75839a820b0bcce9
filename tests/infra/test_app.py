from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.app import serve
from tests.infra.assembly import Assembly, text
from threefold.names import STACKS, stack_name
from threefold.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
DOORS = ("predict", "batch", "stream", "api")
FUNCTIONS = (*DOORS, "monitor")


def run(tmp_path: Path, context: dict[str, Any]) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    out = tmp_path / "out"
    environment = {**os.environ, "CDK_OUTDIR": str(out), "CDK_CONTEXT_JSON": json.dumps(context)}
    path = [str(ROOT / "layers/model/python"), str(ROOT)]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    done = subprocess.run(
        [sys.executable, "-m", "infra.app"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return done, {path.name for path in out.glob("*.template.json")}


def test_without_a_model_layer_the_store_alone_is_synthesized_and_says_so(tmp_path: Path) -> None:
    done, templates = run(tmp_path, {"stage": "t1"})
    assert done.returncode == 0
    assert templates == {"threefold-t1-store.template.json"}
    assert "threefold deploy" in done.stderr


def test_a_wrong_context_ends_in_one_line_and_no_assembly(tmp_path: Path) -> None:
    done, templates = run(tmp_path, {"auth": "open"})
    assert done.returncode != 0
    assert templates == set()
    assert "context 'auth': want one of iam, jwt, none, got 'open'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_deploy_has_the_store_then_all_from_one_process(
    tmp_path: Path, runtime_layer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = {"modelLayerKey": "k.zip", "modelLayerVersion": "v", "runtimeLayer": str(runtime_layer)}
    requests = [
        {"context": {"auth": "none"}, "outdir": str(tmp_path / "store")},
        {"context": {"auth": "none", **layers}, "outdir": str(tmp_path / "all")},
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(request) + "\n" for request in requests)))
    serve()
    assert capsys.readouterr().out == "done\ndone\n"
    assert len(list((tmp_path / "store").glob("*.template.json"))) == 1
    assert len(list((tmp_path / "all").glob("*.template.json"))) == 5


def test_the_stacks_stand_in_deploy_order(iam: Assembly) -> None:
    stacks = {name: part for name, part in iam.manifest.items() if part["type"] == "aws:cloudformation:stack"}
    assert set(stacks) == {stack_name("dev", name) for name in STACKS}
    for door in set(DOORS) - {"api"}:
        assert stack_name("dev", "store") in stacks[stack_name("dev", door)]["dependencies"]
        assert stack_name("dev", door) in stacks[stack_name("dev", "observability")]["dependencies"]


def test_no_stack_imports_from_another(each: Assembly) -> None:
    for template in each.templates.values():
        assert "Fn::ImportValue" not in json.dumps(template)
        assert all("Export" not in output for output in template.get("Outputs", {}).values())


def test_no_function_is_there_but_the_doors_and_the_monitor(iam: Assembly) -> None:
    functions = iam.resources("AWS::Lambda::Function").values()
    names = {text(function["Properties"]["FunctionName"]) for function in functions}
    assert names == {f"threefold-dev-{name}" for name in (*DOORS, "monitor")}
    assert not [kind for template in iam.templates.values() for kind in kinds(template) if kind.startswith("Custom::")]


def kinds(template: dict[str, Any]) -> set[str]:
    return {resource["Type"] for resource in template["Resources"].values()}


def names(assembly: Assembly) -> list[str]:
    """Every name that we give."""
    keys = {
        "Name",
        "BucketName",
        "TableName",
        "FunctionName",
        "QueueName",
        "TopicName",
        "StateMachineName",
        "AlarmName",
    }
    keys |= {"LogGroupName", "DashboardName", "LayerName"}
    named = {"AWS::SSM::Parameter", "AWS::ApiGatewayV2::Api", "AWS::Events::Rule"}
    return [
        f"{resource['Type']} {text(value)}"
        for template in assembly.templates.values()
        for resource in template["Resources"].values()
        for key, value in resource["Properties"].items()
        if (key in keys and key != "Name") or (key == "Name" and resource["Type"] in named)
        if not (isinstance(value, dict) and set(value) != {"Fn::Join"})
        if not (key == "FunctionName" and resource["Type"] != "AWS::Lambda::Function")
    ]


def test_every_name_holds_its_stage_and_is_unique(iam: Assembly, prod: Assembly) -> None:
    dev = names(iam)
    assert len(set(dev)) == len(dev) > 30
    assert all("threefold-dev-" in name or "/threefold/dev/" in name for name in dev)
    assert not set(dev) & set(names(prod))


def version(assembly: Assembly, stack: str) -> tuple[str, str, str]:
    """The logical ids of the model layer and of the version behind `live`."""
    (runtime,) = [name for name in assembly.resources("AWS::Lambda::LayerVersion", stack) if "RuntimeLayer" in name]
    (model,) = [name for name in assembly.resources("AWS::Lambda::LayerVersion", stack) if "ModelLayer" in name]
    _, alias = assembly.alias(stack)
    assert alias["Name"] == "live"
    logical, attribute = alias["FunctionVersion"]["Fn::GetAtt"]
    assert attribute == "Version"
    versions = assembly.resources("AWS::Lambda::Version", stack)
    assert versions[logical]["Properties"]["FunctionName"] == {"Ref": assembly.function_id(stack)}
    assert len(versions) == len(assembly.resources("AWS::Lambda::Function", stack))
    layers = [layer["Ref"] for layer in assembly.function(stack)["Layers"]]
    assert sorted(layers) == sorted([runtime, model])
    return runtime, model, logical


@pytest.mark.parametrize("stack", FUNCTIONS)
def test_another_object_version_of_the_model_layer_is_another_layer_behind_live(
    stack: str, iam: Assembly, synthesize: Callable[..., Assembly]
) -> None:
    other = synthesize(modelLayerVersion="version-2")
    was, now = version(iam, stack), version(other, stack)
    assert was[0] == now[0]
    assert was[1] != now[1]
    assert was[2] != now[2]
    content = {"S3Key": "layers/model/0123.zip", "S3ObjectVersion": "version-2"}
    found = other.resources("AWS::Lambda::LayerVersion", stack)[now[1]]["Properties"]["Content"]
    assert {name: found[name] for name in content} == content
    assert found["S3Bucket"]


@pytest.mark.parametrize("stack", FUNCTIONS)
def test_another_content_of_the_runtime_layer_is_another_version_behind_live(
    stack: str, iam: Assembly, synthesize: Callable[..., Assembly], tmp_path: Path
) -> None:
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "wheel.py").write_text("VALUE = 2\n")
    was, now = version(iam, stack), version(synthesize(runtimeLayer=str(tmp_path)), stack)
    assert was[:2] == now[:2]
    assert was[2] != now[2]


@pytest.mark.parametrize("stack", FUNCTIONS)
def test_the_model_layer_comes_from_the_store_s_bucket(stack: str, iam: Assembly) -> None:
    (layer,) = [
        layer["Properties"]
        for name, layer in iam.resources("AWS::Lambda::LayerVersion", stack).items()
        if name.startswith("ModelLayer")
    ]
    assert text(layer["Content"]["S3Bucket"]) == text(iam.only("AWS::S3::Bucket", "store")["BucketName"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_told_names_that_exist(name: str, iam: Assembly) -> None:
    variables = iam.function(name)["Environment"]["Variables"]
    settings = Settings.from_env({key: text(value) for key, value in variables.items()})
    ours = {key: text(value) for key, value in variables.items() if key.startswith("THREEFOLD_")}
    assert settings.to_env() == ours
    # All that is no setting of ours: numpy's threads, which cost each cold start.
    assert variables.keys() - ours.keys() == {"OPENBLAS_NUM_THREADS"}
    assert (settings.door, settings.stage, settings.auth) == (name, "dev", "iam")
    assert settings.model_bucket == text(iam.only("AWS::S3::Bucket", "store")["BucketName"])
    tables = {table["Properties"]["TableName"] for table in iam.resources("AWS::DynamoDB::Table").values()}
    assert {settings.predictions_table, settings.jobs_table} - {""} <= tables
    buckets = {text(bucket["Properties"]["BucketName"]) for bucket in iam.resources("AWS::S3::Bucket").values()}
    assert {settings.results_bucket, settings.inbox_bucket} - {""} <= buckets


def test_what_only_one_door_needs_is_told_to_that_door(iam: Assembly) -> None:
    told = {door: set(iam.function(door)["Environment"]["Variables"]) for door in DOORS}
    assert {door for door in DOORS if "THREEFOLD_PREDICTIONS_QUEUE_URL" in told[door]} == {"stream"}
    assert {door for door in DOORS if "THREEFOLD_STATE_MACHINE_ARN" in told[door]} == {"batch", "api"}
    assert {door for door in DOORS if "THREEFOLD_PREDICTIONS_TABLE" in told[door]} == {"batch", "stream", "api"}
    assert {door for door in DOORS if "THREEFOLD_INBOX_BUCKET" in told[door]} == {"api", "batch"}


def test_the_context_reaches_the_functions(prod: Assembly) -> None:
    def settings(door: str) -> Settings:
        variables = prod.function(door)["Environment"]["Variables"]
        return Settings.from_env({name: text(value) for name, value in variables.items()})

    assert {settings(door).refresh_seconds for door in DOORS} == {5.0}
    assert {settings(door).stage for door in DOORS} == {"prod"}
    assert settings("predict").scope_template == settings("api").scope_template == "score:{model}"
    assert settings("api").operate_scope_template == "run:{model}"
    assert settings("api").pending_minutes == 5
    assert {settings(door).ttl_days for door in DOORS if door != "predict"} == {7}


@pytest.mark.parametrize(
    ("name", "memory", "usually", "timeout", "reserved"),
    [
        ("predict", 512, 1769, 29, 50),
        ("batch", 3538, 1769, 900, 20),
        ("stream", 1024, 1769, 60, 30),
        ("api", 2048, 1024, 29, None),
        ("monitor", 2048, 1769, 900, None),
    ],
)
def test_a_function_s_shape_is_the_context_s(
    name: str, memory: int, usually: int, timeout: int, reserved: int | None, *, iam: Assembly, prod: Assembly
) -> None:
    function, usual = prod.function(name), iam.function(name)
    assert (function["MemorySize"], function["Timeout"]) == (memory, timeout)
    assert (usual["MemorySize"], usual["Runtime"], usual["Architectures"]) == (usually, "python3.13", ["x86_64"])
    assert (function["EphemeralStorage"], usual["EphemeralStorage"]) == ({"Size": 2048}, {"Size": 512})
    assert function.get("ReservedConcurrentExecutions") == reserved
    assert "ReservedConcurrentExecutions" not in usual
    assert function["Architectures"] == ["arm64"]
    layers = prod.resources("AWS::Lambda::LayerVersion", name).values()
    assert [layer["Properties"]["CompatibleArchitectures"] for layer in layers] == [["arm64"]] * 2
    assert usual["Handler"] == f"{name}.handler"
    assert usual.get("TracingConfig", {}).get("Mode") != "Active"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_s_asset_is_its_own_module_and_nothing_else(name: str, iam: Assembly) -> None:
    key = iam.function(name)["Code"]["S3Key"].removesuffix(".zip")
    folder = iam.folder / f"asset.{key}"
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*")] == [f"{name}.py"]


def test_the_runtime_layer_ships_its_bytecode(iam: Assembly) -> None:
    (layer,) = [
        layer["Properties"]
        for name, layer in iam.resources("AWS::Lambda::LayerVersion", "predict").items()
        if name.startswith("RuntimeLayer")
    ]
    folder = iam.folder / f"asset.{layer['Content']['S3Key'].removesuffix('.zip')}"
    assert (folder / "python" / "__pycache__" / "wheel.cpython-313.pyc").is_file()


def test_a_runtime_layer_without_python_is_refused(synthesize: Callable[..., Assembly], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="context 'runtimeLayer': want a zip or a folder that holds python/"):
        synthesize(runtimeLayer=str(tmp_path))


def test_every_function_has_a_log_group_that_forgets(iam: Assembly, prod: Assembly) -> None:
    for assembly, days in ((iam, 30), (prod, 90)):
        for door in DOORS:
            function = assembly.function(door)
            group = assembly.resources("AWS::Logs::LogGroup", door)[function["LoggingConfig"]["LogGroup"]["Ref"]]
            assert group["Properties"]["LogGroupName"] == f"/aws/lambda/{function['FunctionName']}"
        retentions = {
            group["Properties"].get("RetentionInDays") for group in assembly.resources("AWS::Logs::LogGroup").values()
        }
        assert retentions == {days}


def test_prod_keeps_its_data_and_dev_does_not(iam: Assembly, prod: Assembly) -> None:
    kept = ("AWS::S3::Bucket", "AWS::DynamoDB::Table", "AWS::Logs::LogGroup", "AWS::SQS::Queue", "AWS::KMS::Key")
    # On the way to its first deploy prod keeps nothing: names that are kept would block the next attempt.
    policies = ((iam, "Delete", "Delete", False), (prod, "RetainExceptOnCreate", "Retain", True))
    for assembly, deletion, replacement, protected in policies:
        for kind in kept:
            found = assembly.resources(kind)
            assert found
            assert {resource["DeletionPolicy"] for resource in found.values()} == {deletion}
            assert {resource["UpdateReplacePolicy"] for resource in found.values()} == {replacement}
        tables = assembly.resources("AWS::DynamoDB::Table").values()
        assert {table["Properties"]["DeletionProtectionEnabled"] for table in tables} == {protected}
        stacks = [part for part in assembly.manifest.values() if part["type"] == "aws:cloudformation:stack"]
        assert {part["properties"].get("terminationProtection", False) for part in stacks} == {protected}


def test_stacks_fit_any_account_and_region_but_the_open_one_fits_the_embedded_one_only(
    iam: Assembly, jwt: Assembly, none: Assembly
) -> None:
    def environments(assembly: Assembly) -> set[str]:
        parts = assembly.manifest.values()
        return {part["environment"] for part in parts if part["type"] == "aws:cloudformation:stack"}

    assert environments(iam) == environments(jwt) == {"aws://unknown-account/unknown-region"}
    assert environments(none) == {"aws://000000000000/us-east-1"}
    for template in iam.templates.values():
        assert "arn:aws:" not in json.dumps(template)
        assert "us-east-1" not in json.dumps(template)


def test_everything_that_can_be_is_tagged(iam: Assembly) -> None:
    stacks = [part for part in iam.manifest.values() if part["type"] == "aws:cloudformation:stack"]
    assert all(part["properties"]["tags"] == {"project": "threefold", "stage": "dev"} for part in stacks)
    for kind in ("AWS::Lambda::Function", "AWS::S3::Bucket", "AWS::SQS::Queue", "AWS::DynamoDB::Table"):
        for resource in iam.resources(kind).values():
            assert {"Key": "stage", "Value": "dev"} in resource["Properties"]["Tags"]
