"""The HTTPS door: each answer that the contracts name, and never a traceback."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore.store import S3Store

from threefold.names import PREDICT_ROUTES
from threefold.package import Output
from threefold.release import Challenger, Version
from threefold.signature import Feature

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tests.conftest import Graphs, PackageMaker
    from tests.functions.conftest import Held, Shelf

PREDICT = "POST /models/{model}/predictions"
INFER = "POST /v2/models/{model}/infer"
INFER_VERSION = "POST /v2/models/{model}/versions/{version}/infer"
FEATURES = (Feature(name="a", type="float32", max=100), Feature(name="b", type="float32"))
VALUE = Output(kind="regression", value="value")


@dataclass
class Door:
    """The function in one execution environment."""

    module: ModuleType
    event: Callable[..., dict[str, Any]]

    def raw(self, *args: Any, **fields: Any) -> dict[str, Any]:
        response: dict[str, Any] = self.module.handler(self.event(*args, **fields), None)
        assert response["isBase64Encoded"] is False
        assert response["headers"]["content-type"] == "application/json"
        # Every body is strict JSON, and no body has a traceback in it.
        json.loads(response["body"], parse_constant=pytest.fail)
        assert "Traceback" not in response["body"]
        return response

    def __call__(self, *args: Any, **fields: Any) -> tuple[int, dict[str, Any]]:
        response = self.raw(*args, **fields)
        return response["statusCode"], json.loads(response["body"])

    def later(self) -> None:
        """More than `refresh_seconds` pass."""
        registry = self.module._predictor().registry
        registry._clock = lambda: time.monotonic() + 31

    def cut_off(self) -> None:
        """The registry does not answer any more."""
        registry = self.module._predictor().registry
        registry._store = registry.packages._store = S3Store(
            "models",
            endpoint="http://127.0.0.1:1",
            client_options={"allow_http": True, "connect_timeout": timedelta(seconds=1)},
            retry_config={"max_retries": 0},
        )


@pytest.fixture
def make_door(load: Callable[..., ModuleType], http: Callable[..., dict[str, Any]]) -> Callable[..., Door]:
    return lambda bucket, **environment: Door(load("predict", THREEFOLD_MODEL_BUCKET=bucket, **environment), http)


@pytest.fixture
def door(make_door: Callable[..., Door], example_bucket: str) -> Door:
    """The example models, with the default settings."""
    return make_door(example_bucket)


def tensor(name: str, data: list[Any], shape: list[int], datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def test_held_out_records_get_what_the_training_library_said(door: Door, held_out: Callable[[str], Held]) -> None:
    for model, what in (("breast-cancer", "label"), ("digits", "label"), ("diabetes", "value")):
        held = held_out(model)
        status, body = door(PREDICT, {"records": held.records}, model=model)
        assert status == 200
        for prediction, expected in zip(body["predictions"], held.expected, strict=True):
            if "options" in prediction:
                assert prediction["status"] == "abstained"
                assert prediction["options"][0]["label"] == expected["label"]
            elif what == "value":
                assert prediction["value"] == pytest.approx(expected["value"], rel=1e-4)
            else:
                assert prediction["label"] == expected["label"]
                assert prediction["score"] == pytest.approx(expected["scores"][str(expected["label"])], abs=1e-5)
        assert [prediction["key"] for prediction in body["predictions"]] == [line["key"] for line in held.expected]


def test_a_single_record_is_told_apart_in_the_headers(door: Door, held_out: Callable[[str], Held]) -> None:
    held = held_out("diabetes")
    response = door.raw(PREDICT, {"records": held.records[:1]}, model="diabetes")
    prediction = json.loads(response["body"])["predictions"][0]
    assert response["headers"]["x-prediction-id"] == prediction["id"]
    assert response["headers"]["x-model-version"] == "1.0.0"
    assert response["headers"]["x-model-digest"] == prediction["digest"]
    assert "predict;dur=" in response["headers"]["server-timing"]
    assert "x-release-stale" not in response["headers"]
    assert "x-prediction-id" not in door.raw(PREDICT, {"records": held.records[:2]}, model="diabetes")["headers"]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "not json",
        "[]",
        "null",
        "{}",
        '{"records": []}',
        '{"records": {}}',
        '{"records": "x"}',
        '{"instances": [{}]}',
        "[" * 5000,
        '{"records": [{"a": "\\ud800"}]}',
        '{"records": ' + "9" * 5000 + "}",
    ],
    ids=lambda body: body[:20],
)
def test_a_malformed_body_is_400(body: str, door: Door) -> None:
    status, answer = door(PREDICT, body, model="diabetes")
    assert (status, answer["code"]) == (400, "malformed")
    assert "want" in answer["error"]


def test_no_body_at_all_is_400(door: Door) -> None:
    event = door.event(PREDICT, None, model="diabetes")
    assert "body" not in event
    assert door.module.handler(event, None)["statusCode"] == 400
    assert door.module.handler(event | {"body": None}, None)["statusCode"] == 400


def test_records_that_are_all_wrong_are_422_and_each_is_listed(door: Door, held_out: Callable[[str], Held]) -> None:
    good = held_out("diabetes").records[0]
    wrong: list[Any] = [
        {name: value for name, value in good.items() if name != "bmi"},
        good | {"age": "old"},
        good | {"age": json.loads("[" * 800 + "]" * 800)},
        good | {"sex": 10**30},
        None,
        [1, 2],
    ]
    response = door.raw(PREDICT, {"records": wrong}, model="diabetes")
    body = json.loads(response["body"])
    assert response["statusCode"] == 422
    assert (body["code"], body["error"]) == ("outside_signature", body["predictions"][0]["message"])
    assert body["error"] == "input 'bmi': want FP32 in [12, 60], got nothing"
    assert [prediction["status"] for prediction in body["predictions"]] == ["rejected"] * 6
    assert [prediction["message"].split(", got")[0] for prediction in body["predictions"][1:3]] == [
        "input 'age': want FP32 in [10, 100]"
    ] * 2
    assert response["headers"]["x-model-version"] == "1.0.0"


def test_one_wrong_record_stands_in_its_place_with_its_reason(door: Door, held_out: Callable[[str], Held]) -> None:
    good = held_out("diabetes").records[:3]
    status, body = door(PREDICT, {"records": [good[0], good[1] | {"bmi": 99}, good[2]]}, model="diabetes")
    assert status == 200
    assert [prediction["status"] for prediction in body["predictions"]] == ["predicted", "rejected", "predicted"]
    assert body["predictions"][1]["message"] == "input 'bmi': want FP32 in [12, 60], got 99"


def test_a_default_is_told_as_a_reason(door: Door, held_out: Callable[[str], Held]) -> None:
    record = held_out("diabetes").records[0] | {"glucose": None}
    _, body = door(PREDICT, {"records": [record]}, model="diabetes")
    assert "input 'glucose': missing, 91.0 stands in" in body["predictions"][0]["reasons"] or (
        "input 'glucose': missing, 91 stands in" in body["predictions"][0]["reasons"]
    )


@pytest.mark.parametrize("route", [" ".join(route) for route in PREDICT_ROUTES if "{model}" in route[1]])
@pytest.mark.parametrize("model", ["no-such-model", "Diabetes", "a" * 64, "..", "w\u00efne"])
def test_an_unknown_model_is_404_on_every_route(route: str, model: str, door: Door) -> None:
    body = {"records": [{}]} if route == PREDICT else {"inputs": [tensor("x", [1], [1])]}
    parameters = {"model": model} | ({"version": "1.0.0"} if "{version}" in route else {})
    status, answer = door(route, body, **parameters)
    assert (status, answer["code"]) == (404, "unknown_model")


def test_an_unknown_version_is_404(door: Door) -> None:
    for route in ("POST /v2/models/{model}/versions/{version}/infer", "GET /v2/models/{model}/versions/{version}"):
        status, answer = door(route, {"inputs": [tensor("x", [1], [1])]}, model="diabetes", version="9")
        assert (status, answer["code"]) == (404, "unknown_model")
        assert "want a version out of ['1.0.0'], got '9'" in answer["error"]


@pytest.mark.parametrize("route", ["GET /nowhere", "$default", "DELETE /models/{model}", ""])
def test_an_unknown_route_is_404(route: str, door: Door) -> None:
    status, answer = door(route, model="diabetes")
    assert (status, answer["code"]) == (404, "unknown_route")


def test_a_model_spelled_with_percent_is_404_and_a_version_is_not(door: Door, held_out: Callable[[str], Held]) -> None:
    record = held_out("diabetes").records[0]
    body = {"records": [record]}
    assert door(PREDICT, body, model="diabetes")[0] == 200
    assert door(PREDICT, body, model="diabetes", raw_path="/models/diabete%73/predictions")[0] == 404
    assert door(PREDICT, body, model="diabete%73")[0] == 404
    spelled = "/v2/models/diabetes/versions/1%2E0.0"
    assert (
        door("GET /v2/models/{model}/versions/{version}", model="diabetes", version="1.0.0", raw_path=spelled)[0] == 200
    )


@pytest.mark.parametrize("media_type", ["text/csv", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_another_media_type_is_415(media_type: str, door: Door) -> None:
    for route in (PREDICT, INFER):
        status, answer = door(route, "{}", model="diabetes", headers={"content-type": media_type})
        assert (status, answer["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON", " application/json "])
def test_json_is_json_however_it_is_spelled(media_type: str, door: Door, held_out: Callable[[str], Held]) -> None:
    body = {"records": held_out("diabetes").records[:1]}
    assert door(PREDICT, body, model="diabetes", headers={"content-type": media_type})[0] == 200


def test_a_base64_body_is_the_same_body(door: Door, held_out: Callable[[str], Held]) -> None:
    body = json.dumps({"records": held_out("diabetes").records[:1]})
    plain = door(PREDICT, body, model="diabetes")[1]["predictions"][0]
    encoded = base64.b64encode(body.encode()).decode()
    status, answer = door(PREDICT, encoded, model="diabetes", encoded=True)
    assert (status, answer["predictions"][0]["value"]) == (200, plain["value"])
    for broken in ("%%%", "YQ", base64.b64encode(b"\xff\xfe").decode()):
        assert door(PREDICT, broken, model="diabetes", encoded=True)[0] == 400


def test_an_answer_larger_than_lambda_carries_is_413(
    make_door: Callable[..., Door], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    shelf.release(make_package(graphs.identity("BYTES", ["n"]), name="echo"))
    door = make_door(shelf.bucket)

    def echo(text: str) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"inputs": [tensor("x", [text], [1], "BYTES")]}, ensure_ascii=False)
        return door(INFER, body, model="echo")

    assert echo("a" * 6_200_000)[0] == 200
    status, answer = echo("a" * 6_291_556)
    assert (status, answer["code"]) == (413, "too_large")
    # What Lambda sends is JSON within JSON: a quote is written \\\" there.
    response = door.raw(INFER, json.dumps({"inputs": [tensor("x", ['"' * 1_400_000], [1], "BYTES")]}), model="echo")
    assert response["statusCode"] == 200
    assert len(json.dumps(response)) <= 6_291_556
    assert echo('"' * 1_900_000)[0] == 413


def test_infer_answers_every_output_and_echoes_the_id(door: Door, models: Any) -> None:
    pair = json.loads((models / "digit-pairs" / "held-out.jsonl").read_text().splitlines()[0])
    expected = json.loads((models / "digit-pairs" / "held-out.expected.jsonl").read_text().splitlines()[0])
    inputs = [tensor(name, [pair["inputs"][name]], [1, 8, 8]) for name in ("left", "right")]
    response = door.raw(INFER, {"id": "request-7", "inputs": inputs}, model="digit-pairs")
    body = json.loads(response["body"])
    assert response["statusCode"] == 200
    assert (body["id"], body["model_name"], body["model_version"]) == ("request-7", "digit-pairs", "1.0.0")
    outputs = {output["name"]: output for output in body["outputs"]}
    assert outputs.keys() == {"same", "distance"}
    for name, output in outputs.items():
        assert (output["datatype"], output["shape"]) == ("FP32", [1])
        assert output["data"][0] == pytest.approx(expected[name], abs=1e-5)
    body = door(INFER, {"inputs": inputs, "outputs": [{"name": "same"}]}, model="digit-pairs")[1]
    assert [output["name"] for output in body["outputs"]] == ["same"]
    assert len(body["id"]) == 32


@pytest.mark.parametrize(
    ("inputs", "status"),
    [
        ([], 400),
        ([tensor("left", [0] * 64, [1, 8, 8])], 422),
        ([tensor("left", [0] * 64, [1, 8, 8]), tensor("right", [0] * 128, [2, 8, 8])], 422),
        ([tensor("left", [0] * 64, [1, 8, 8]), tensor("right", [0] * 64, [1, 64])], 422),
        ([tensor("left", [0] * 64, [1, 8, 8]), tensor("right", [0] * 64, [1, 8, 8], "FP64")], 422),
        ([tensor("left", [0] * 64, [1, 8, 8]), tensor("right", [1.5] * 64, [1, 8, 8], "INT64")], 422),
        ([tensor("left", [0] * 64, [1, 8, 8]), tensor("right", [0] * 63, [1, 8, 8])], 400),
        ([tensor("left", [1], []), tensor("right", [1], [])], 422),
        ([tensor("left", [], [0, 10**30]), tensor("right", [], [0])], 400),
        ([tensor("left", [1], [1] * 64), tensor("right", [1], [1])], 400),
        ([tensor("left", [0] * 64, [1, 8, 8]), tensor("right", [0] * 64, [1, 8, 8]), tensor("z", [1], [1])], 422),
    ],
)
def test_tensors_that_do_not_fit_are_refused(inputs: list[Any], status: int, door: Door) -> None:
    found, answer = door(INFER, {"inputs": inputs}, model="digit-pairs")
    assert found == status
    assert "want" in answer["error"]


def test_no_rows_are_an_answer_of_no_rows(door: Door) -> None:
    inputs = [tensor(name, [], [0, 8, 8]) for name in ("left", "right")]
    status, body = door(INFER, {"inputs": inputs}, model="digit-pairs")
    assert status == 200
    assert [output["shape"] for output in body["outputs"]] == [[0], [0]]


def test_tensors_with_gaps_are_read_and_non_finite_outputs_are_strings(
    make_door: Callable[..., Door], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    shelf.release(make_package(graphs.identity("FP32", ["n"]), name="echo"))
    content = (
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [5], "data": [null, NaN, "Infinity", -Infinity, 1]}]}'
    )
    status, body = make_door(shelf.bucket)(INFER, content, model="echo")
    assert (status, body["outputs"][0]["data"]) == (200, ["NaN", "NaN", "Infinity", "-Infinity", 1.0])


def test_int64_is_exact_both_ways(
    make_door: Callable[..., Door], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    shelf.release(make_package(graphs.identity("INT64", ["n"]), name="echo"))
    values = [2**53 + 1, -(2**63), 2**63 - 1]
    _, body = make_door(shelf.bucket)(INFER, {"inputs": [tensor("x", values, [3], "INT64")]}, model="echo")
    assert body["outputs"][0]["data"] == values


def test_records_for_a_model_that_takes_tensors_only_are_422(door: Door) -> None:
    status, answer = door(PREDICT, {"records": [{"left": 1}]}, model="digit-pairs")
    assert (status, answer["code"]) == (422, "outside_signature")


def test_metadata_and_health(door: Door) -> None:
    assert door("GET /v2")[1]["name"] == "threefold"
    assert door("GET /v2/health/live") == (200, {"live": True})
    assert door("GET /v2/health/ready") == (200, {"ready": True})
    status, body = door("GET /v2/models/{model}", model="digit-pairs")
    assert (status, body["versions"], body["platform"]) == (200, ["1.0.0"], "onnx_onnxv1")
    assert body["inputs"][0] == {"name": "left", "datatype": "FP32", "shape": [-1, 8, 8]}
    assert door("GET /v2/models/{model}/versions/{version}", model="digit-pairs", version="1.0.0") == (200, body)
    ready = (200, {"name": "digits", "ready": True, "stale": False})
    assert door("GET /v2/models/{model}/ready", model="digits") == ready
    assert door("GET /v2/models/{model}/versions/{version}/ready", model="digits", version="1.0.0") == ready


def test_models_are_listed_and_told_about(door: Door) -> None:
    status, body = door("GET /models")
    assert status == 200
    assert [model["name"] for model in body["models"]] == [
        *("breast-cancer", "card-fraud", "diabetes", "digit-pairs", "digits")
    ]
    status, about = door("GET /models/{model}", model="digits")
    assert status == 200
    assert about["digest"] == body["models"][4]["digest"] == about["release"]["champion"]["digest"]
    assert (about["key"], about["output"]["classes"]) == ("image_id", list(range(10)))
    assert about["release"]["serving"] == {"abstain_below": 0.5, "options": 3}
    assert about["quality"]["gate"]["metric"] == "accuracy"
    assert len(about["signature"]["features"]) == 64


def test_one_release_that_is_broken_or_gone_leaves_the_list_of_the_others(
    make_door: Callable[..., Door], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    for name in ("a", "b", "c"):
        shelf.release(make_package(graphs.identity("FP32"), name=name))
    s3 = boto3.client("s3")
    s3.put_object(Bucket=shelf.bucket, Key="releases/b.json", Body=b"{")
    door = make_door(shelf.bucket)
    door.module._predictor().registry.models()
    s3.delete_object(Bucket=shelf.bucket, Key="releases/c.json")
    status, body = door("GET /models")
    assert status == 200
    assert [(model["name"], model.get("code")) for model in body["models"]] == [("a", None), ("b", "not_servable")]


def test_a_version_is_reached_by_its_label(
    make_door: Callable[..., Door], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    old = make_package(graphs.linear([1], 1), name="line", version="1.0.0")
    new = make_package(graphs.linear([1], 2), name="line", version="2.0.0+b1")
    shelf.release(old)
    release = shelf.release(new, previous=(Version(old.digest, "1.0.0"),))
    door = make_door(shelf.bucket)
    for version, value in (("1.0.0", 1.0), ("2.0.0+b1", 2.0), (release.champion.digest, 2.0)):
        status, body = door(INFER_VERSION, {"inputs": [tensor("x", [0], [1, 1])]}, model="line", version=version)
        assert (status, body["outputs"][0]["data"]) == (200, [value])


def test_a_canary_answers_its_share_and_says_so(
    make_door: Callable[..., Door], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    champion = make_package(graphs.linear([1, 0]), name="line", features=FEATURES, output=VALUE, key="id")
    trial = make_package(graphs.linear([1, 0], 1000), name="line", version="2", features=FEATURES, output=VALUE)
    shelf.registry.packages.publish(trial)
    shelf.release(champion, challenger=Challenger(trial.digest, "2", "canary", 50.0, "salt"))
    door = make_door(shelf.bucket)
    records = [{"id": f"customer-{i}", "a": 1, "b": 0} for i in range(200)]
    first = door(PREDICT, {"records": records}, model="line")[1]["predictions"]
    roles = [prediction["role"] for prediction in first]
    assert 60 < roles.count("canary") < 140
    assert [prediction["value"] for prediction in first] == [1001 if role == "canary" else 1 for role in roles]
    again = [door(PREDICT, {"records": [record]}, model="line")[1]["predictions"][0]["role"] for record in records]
    assert again == roles


def test_a_loaded_model_goes_on_without_the_registry_and_says_so(door: Door, held_out: Callable[[str], Held]) -> None:
    body = {"records": held_out("diabetes").records[:1]}
    value = door(PREDICT, body, model="diabetes")[1]["predictions"][0]["value"]
    door("GET /models")
    door.cut_off()
    door.later()
    response = door.raw(PREDICT, body, model="diabetes")
    assert response["statusCode"] == 200
    assert response["headers"]["x-release-stale"] == "true"
    assert json.loads(response["body"])["predictions"][0]["value"] == value
    assert door("GET /v2/models/{model}/ready", model="diabetes")[1]["stale"] is True
    assert door("GET /v2/health/ready")[0] == 200
    assert door("GET /v2/health/live")[0] == 200
    # What was never loaded is another matter.
    assert door(PREDICT, body, model="digits")[0] == 503


def test_a_cold_start_without_the_registry_is_503_and_says_why(
    make_door: Callable[..., Door], held_out: Callable[[str], Held]
) -> None:
    door = make_door("models", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    for route, body in ((PREDICT, {"records": held_out("diabetes").records[:1]}), ("GET /v2/models/{model}", None)):
        status, answer = door(route, body, model="diabetes")
        assert (status, answer["code"]) == (503, "registry_unreachable")
        assert answer["error"].startswith("registry: want the model bucket to answer")
    assert door("GET /v2/health/ready")[0] == 503
    assert door("GET /v2/health/live")[0] == 200


def test_a_cold_start_without_the_registry_serves_the_baked_champion(
    make_door: Callable[..., Door], shelf: Shelf, graphs: Graphs, make_package: PackageMaker, tmp_path: Any
) -> None:
    package = make_package(graphs.linear([1, 1]), name="line", features=FEATURES, output=VALUE)
    release = shelf.release(package)
    door = make_door("models", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    (tmp_path / "baked" / "packages").mkdir(parents=True)
    (tmp_path / "baked" / "packages" / package.digest).symlink_to(package.folder)
    (tmp_path / "baked" / "releases").mkdir()
    (tmp_path / "baked" / "releases" / "line.json").write_text(json.dumps(release.to_json()))
    registry = door.module._predictor().registry
    registry._baked = registry.packages._baked = tmp_path / "baked"
    response = door.raw(PREDICT, {"records": [{"a": 1, "b": 2}]}, model="line")
    assert (response["statusCode"], response["headers"]["x-release-stale"]) == (200, "true")
    assert json.loads(response["body"])["predictions"][0]["value"] == 3.0


def test_a_refused_package_is_503_with_its_reason(
    make_door: Callable[..., Door], shelf: Shelf, graphs: Graphs, make_package: PackageMaker
) -> None:
    wrong = [{"record": {"a": 1, "b": 1}, "expect": {"value": 999}}]
    graph = graphs.linear([1, 1])
    shelf.release(make_package(graph, name="line", features=FEATURES, output=VALUE, examples=wrong))
    door = make_door(shelf.bucket)
    for _ in range(2):
        status, answer = door(PREDICT, {"records": [{"a": 1, "b": 1}]}, model="line")
        assert (status, answer["code"]) == (503, "invalid_package")
        assert "examples.jsonl:1: want value 999, got 2" in answer["error"]
    assert door("GET /v2/models/{model}/ready", model="line")[0] == 503


@pytest.mark.parametrize("damage", ["examples", "zip"])
def test_the_last_good_model_answers_when_a_new_one_is_refused(
    damage: str,
    *,
    make_door: Callable[..., Door],
    shelf: Shelf,
    graphs: Graphs,
    make_package: PackageMaker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fields: dict[str, Any] = {"name": "line", "features": FEATURES, "output": VALUE, "key": "id"}
    shelf.release(make_package(graphs.linear([1, 1]), **fields))
    door = make_door(shelf.bucket)
    body = {"records": [{"id": "k", "a": 1, "b": 1}]}
    assert door(PREDICT, body, model="line")[0] == 200
    wrong = [{"record": {"a": 1, "b": 1}, "expect": {"value": 999}}] if damage == "examples" else []
    bad = make_package(graphs.linear([1, 2]), version="2.0.0", examples=wrong, **fields)
    shelf.release(bad)
    if damage == "zip":
        boto3.client("s3").put_object(Bucket=shelf.bucket, Key=f"packages/line/{bad.digest}.zip", Body=b"PK")
    door.later()
    capsys.readouterr()
    response = door.raw(PREDICT, body, model="line")
    refused = [each["PackageRefused"] for each in metrics(capsys.readouterr().out) if "PackageRefused" in each]
    assert refused == [[1]]
    prediction = json.loads(response["body"])["predictions"][0]
    assert (response["statusCode"], response["headers"]["x-model-version"]) == (200, "1.0.0")
    assert (prediction["role"], prediction["value"], prediction["key"]) == ("fallback", 2.0, "k")
    status, answer = door("GET /v2/models/{model}/ready", model="line")
    assert (status, answer["code"]) == (503, "not_servable")
    assert ("want value 999" if damage == "examples" else "want a whole zip file") in answer["error"]
    # Who asks for the refused one by name gets no other.
    infer = {"inputs": [tensor("x", [1, 1], [1, 2])]}
    assert door(INFER_VERSION, infer, model="line", version="2.0.0")[0] == 503
    assert door("GET /v2/models/{model}/versions/{version}/ready", model="line", version="2.0.0")[0] == 503
    assert door(INFER, infer, model="line")[1]["model_version"] == "1.0.0"


def test_auth_none_is_refused_on_amazons_aws(
    make_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch, http: Callable[..., dict[str, Any]]
) -> None:
    door = make_door("models", THREEFOLD_AUTH="none", AWS_ENDPOINT_URL="")
    for route in ("GET /v2/health/live", "GET /models"):
        status, answer = door(route)
        assert (status, answer["code"]) == (403, "forbidden")
    assert make_door("models", THREEFOLD_AUTH="none", AWS_ENDPOINT_URL="http://127.0.0.1:1")("GET /v2")[0] == 200


@pytest.mark.parametrize(
    ("claims", "allowed"),
    [
        ({"scope": "predict:diabetes"}, True),
        ({"scope": "openid predict:digits predict:diabetes"}, True),
        ({"scp": "predict:diabetes"}, True),
        ({"scp": ["predict:diabetes"]}, True),
        ({"scp": "[openid predict:diabetes]"}, True),
        ({"scope": "predict:digits"}, False),
        ({"scope": "predict:diabetes2"}, False),
        ({"scope": "predict:*"}, False),
        ({"scope": ""}, False),
        ({"sub": "predict:diabetes"}, False),
        ({}, False),
        (None, False),
    ],
)
def test_a_token_opens_the_models_of_its_scopes(
    claims: dict[str, Any] | None,
    allowed: bool,
    make_door: Callable[..., Door],
    example_bucket: str,
    held_out: Callable[[str], Held],
) -> None:
    door = make_door(example_bucket, THREEFOLD_AUTH="jwt")
    body = {"records": held_out("diabetes").records[:1]}
    assert door(PREDICT, body, model="diabetes", claims=claims)[0] == (200 if allowed else 403)
    listed = [model["name"] for model in door("GET /models", claims=claims)[1]["models"]]
    assert ("diabetes" in listed) == allowed


@pytest.mark.parametrize("route", [" ".join(route) for route in PREDICT_ROUTES if "{model}" in route[1]])
def test_a_forbidden_model_looks_the_same_whether_it_exists_or_not(
    route: str, make_door: Callable[..., Door], example_bucket: str
) -> None:
    door = make_door(example_bucket, THREEFOLD_AUTH="jwt")
    answers = [
        door.raw(route, "{", model=model, version="1.0.0", claims={"scope": "predict:digits"})
        for model in ("diabetes", "no-such-model")
    ]
    assert answers[0] == answers[1]
    assert (answers[0]["statusCode"], json.loads(answers[0]["body"])["code"]) == (403, "forbidden")


def test_health_is_open_to_a_caller_without_a_token(make_door: Callable[..., Door], example_bucket: str) -> None:
    door = make_door(example_bucket, THREEFOLD_AUTH="jwt")
    assert [door(route)[0] for route in ("GET /v2/health/live", "GET /v2/health/ready")] == [200, 200]


def metrics(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if "_aws" in line]


def test_the_metrics_of_a_request_are_one_emf_line(
    door: Door, held_out: Callable[[str], Held], capsys: pytest.CaptureFixture[str]
) -> None:
    records = held_out("diabetes").records[:3]
    door(PREDICT, {"records": records}, model="diabetes")
    capsys.readouterr()
    door(PREDICT, {"records": [*records, {}]}, model="diabetes")
    (line,) = metrics(capsys.readouterr().out)
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert sorted(sorted(names) for names in directive["Dimensions"]) == [
        ["door"],
        ["door", "model"],
        ["model", "role"],
    ]
    assert (line["door"], line["model"], line["role"]) == ("predict", "diabetes", "champion")
    assert (line["Predictions"], line["Rejected"], line["status"]) == ([3], [1], 200)
    assert line["route"] == PREDICT
    assert {metric["Name"] for metric in directive["Metrics"]} == {"Predictions", "Rejected", "LatencyMs"}


def test_names_that_callers_make_up_make_no_metrics(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("made-up", "made-up-too"):
        door(PREDICT, {"records": [{}]}, model=model)
        door(INFER, {"inputs": [tensor("x", [1], [1])]}, model=model)
    found = metrics(capsys.readouterr().out)
    assert len(found) == 4
    assert all("model" not in line for line in found)


def test_what_is_unforeseen_is_500_with_the_traceback_in_the_log_only(
    door: Door,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_model: str) -> None:
        raise ZeroDivisionError("a secret of the inside")

    monkeypatch.setattr(door.module._predictor().registry, "release", fail)
    status, answer = door(PREDICT, {"records": [{"name": "a caller's value"}]}, model="diabetes")
    assert status == 500
    assert "secret" not in json.dumps(answer)
    assert "ZeroDivisionError: a secret of the inside" in caplog.text
    assert "a caller's value" not in caplog.text
    assert metrics(capsys.readouterr().out)[0]["Errors"] == [1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELD = st.sampled_from(["records", "inputs", "id", "outputs", "parameters"])
RECORD = st.dictionaries(st.sampled_from(["patient_id", "age", "sex", "bmi", "glucose"]), JSON)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["left", "right"]) | JSON,
        "datatype": st.sampled_from(["FP32", "INT64"]) | JSON,
        "shape": st.lists(st.integers(0, 8), max_size=4) | JSON,
        "data": st.lists(st.integers(-3, 9) | JSON, max_size=4),
    }
)
BODY = (
    JSON
    | st.fixed_dictionaries({"records": st.lists(RECORD | JSON, min_size=1, max_size=3)})
    | st.fixed_dictionaries({"inputs": st.lists(TENSOR | JSON, min_size=1, max_size=2)}, optional={"id": JSON})
    | st.dictionaries(FIELD, JSON)
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(body=BODY, route=st.sampled_from([PREDICT, INFER]), model=st.sampled_from(["diabetes", "digit-pairs"]))
def test_no_body_brings_the_door_down(body: object, route: str, model: str, door: Door) -> None:
    assert door(route, body, model=model)[0] in {200, 400, 422}
